"""Memory and Redis above SQL: quick, and never the reason of a wrong reuse."""

import asyncio

import pytest
from redis.exceptions import RedisError

from cache_server.entries import open_entries
from memopod.steps import Outputs
from tests.cache_server.entries.replicas import (
    SECOND,
    counted,
    replica,
    subscribed,
    until,
)

from .proxy import Proxy


@pytest.fixture
def url(sqlite_url):
    """What is remembered is the same above every database; `test_tokens` asks all of them."""
    return sqlite_url


async def test_what_was_found_is_remembered_for_as_long_as_the_lease_runs(url, make_entry):
    entry = make_entry()
    async with replica(url) as one:
        await one.entries.put(entry)
        assert [await one.find(entry) for _ in range(5)] == [entry] * 5
        assert one.looks == 1
        one.later()
        assert [await one.find(entry) for _ in range(5)] == [entry] * 5
        assert one.looks == 2


async def test_that_there_is_no_entry_is_remembered_and_an_own_recording_is_found_at_once(url, make_entry):
    entry = make_entry()
    async with replica(url) as one:
        await one.entries.put(make_entry(key="ef" * 32))
        assert [await one.find(entry) for _ in range(3)] == [None] * 3
        assert one.looks == 1
        await one.entries.put(entry)
        assert await one.find(entry) == entry


async def test_in_a_namespace_without_entries_nothing_is_remembered(url, make_entry):
    entry = make_entry()
    async with replica(url) as one, replica(url) as other:
        assert await one.find(entry) is None
        await other.entries.put(entry)
        assert await one.find(entry) == entry


async def test_a_replica_finds_in_redis_what_another_read(url, cleared, make_entry):
    entry = make_entry()
    async with replica(url, cleared) as one, replica(url, cleared) as other:
        await one.entries.put(entry)
        await one.find(entry)
        await one.kept()
        # The other one knows the token by another question.
        await other.entries.find(entry.namespace, "no such key")
        assert await other.find(entry) == entry
        assert other.looks == 1
        hits = counted("redis", "entry")
        other.memory.drop(entry.namespace, entry.key)
        await other.find(entry)
        assert counted("redis", "entry") == hits + 1


async def test_an_entry_comes_back_from_redis_as_it_was(url, cleared, make_entry):
    entry = make_entry(outputs=Outputs(parameters={"message": "done 🎉\x00\u2028"}), pinned=True)
    async with replica(url, cleared) as one:
        redis = one.entries._redis
        await one.entries.put(entry)
        await one.find(entry)
        await one.kept()
        one.memory.drop(entry.namespace, entry.key)
        assert await one.find(entry) == entry
        assert one.looks == 1
        assert len(await redis._client.keys("memopod:entry:*")) == 1


async def test_identical_look_ups_in_flight_are_one(url, make_entry):
    entry = make_entry()
    async with replica(url) as one:
        await one.entries.put(entry)
        gate = one.slow()
        asking = [asyncio.create_task(one.find(entry)) for _ in range(50)]
        await gate.read.wait()
        # One caller gives up; the others do not notice.
        asking[0].cancel()
        gate.go_on.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [entry] * 49
        assert one.looks == 1


async def test_a_look_up_does_not_join_one_that_began_a_lease_ago(url, make_entry):
    entry = make_entry()
    async with replica(url) as one, replica(url) as other:
        await one.entries.put(entry)
        gate = one.slow()
        early = asyncio.create_task(one.find(entry))
        await gate.read.wait()
        await other.entries.retire(entry.id, "test")
        one.later()
        assert await one.find(entry) is None
        gate.go_on.set()
        assert await early == entry
        assert await one.find(entry) is None


# --- never wrong ---------------------------------------------------------------------------------------


async def test_what_this_process_takes_back_is_gone_at_once(url, cleared, make_entry):
    entry = make_entry()
    async with replica(url, cleared) as one:
        await one.entries.put(entry)
        await one.find(entry)
        await one.kept()
        await one.entries.retire(entry.id, "test")
        assert await one.find(entry) is None


async def test_what_nobody_was_told_of_is_gone_when_the_lease_has_run_out(url, cleared, make_entry):
    entry = make_entry()
    async with replica(url, cleared) as one, open_entries(url) as command:
        await one.entries.put(entry)
        await one.find(entry)
        await one.kept()
        await command.retire(entry.id, "by hand")
        one.later()
        assert await one.find(entry) is None


async def test_a_replaced_entry_is_not_found_when_the_lease_has_run_out(url, cleared, make_entry):
    old = make_entry()
    new = make_entry(finished_at=old.finished_at + SECOND)
    async with replica(url, cleared) as one, open_entries(url) as recorder:
        await one.entries.put(old)
        await one.find(old)
        await one.kept()
        await recorder.put(new)
        one.later()
        assert await one.find(old) == new


async def test_redis_tells_every_replica_long_before_the_lease_has_run_out(url, cleared, make_entry):
    entry = make_entry()
    async with replica(url, cleared) as one, replica(url, cleared) as other:
        await subscribed(one, other)
        await one.entries.put(entry)
        assert await other.find(entry) == entry
        await one.entries.retire(entry.id, "test")
        # The other one's clock stands still: nothing but the message can tell it.

        async def gone():
            return await other.find(entry) is None

        await until(gone)


async def test_a_slow_read_that_is_remembered_after_the_change_is_never_found(url, cleared, make_entry):
    entry = make_entry()
    async with replica(url, cleared) as one, replica(url, cleared) as other:
        await one.entries.put(entry)
        gate = one.slow()
        slow = asyncio.create_task(one.find(entry))
        await gate.read.wait()
        await other.entries.retire(entry.id, "test")
        one.later()
        gate.go_on.set()
        assert await slow == entry
        await one.kept()
        assert len(await one.entries._redis._client.keys("memopod:entry:*")) == 1
        assert await one.find(entry) is None
        assert await other.find(entry) is None


async def test_a_replica_that_lost_its_subscription_is_no_more_than_a_lease_behind(url, cleared, make_entry):
    entry = make_entry()
    async with (
        Proxy.before(cleared) as proxy,
        replica(url, cleared) as one,
        replica(url, proxy.port, share=0.2) as lonely,
    ):
        await subscribed(one, lonely)
        await one.entries.put(entry)
        assert await lonely.find(entry) == entry
        proxy.silent = True
        await one.entries.retire(entry.id, "test")
        lonely.later()
        assert await lonely.find(entry) is None
        # Told again: whatever it was not told of is not relied on.
        proxy.silent = False
        proxy.cut()
        lonely.entries._leases._not_before = 0.0
        await subscribed(lonely)


async def test_a_redis_that_comes_back_with_old_content_does_no_harm(url, cleared, redis_server, make_entry):
    entry = make_entry()
    async with replica(url, cleared) as one:
        await one.entries.put(entry)
        await one.find(entry)
        await one.kept()
        client = one.entries._redis._client
        await client.save()
        await one.entries.retire(entry.id, "test")
        redis_server.crash()
        await asyncio.to_thread(redis_server.start)

        async def is_back():
            try:
                return await client.keys("memopod:entry:*")
            except (OSError, RedisError):
                return False

        try:
            assert await until(is_back)
            one.memory.drop(entry.namespace, entry.key)
            for _ in range(3):
                assert await one.find(entry) is None
                one.later()
        finally:
            (redis_server.folder / "dump.rdb").unlink()
