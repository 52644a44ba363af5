"""A layer that is dead, slow or wrong is skipped; a database that is, means that nobody knows."""

import asyncio
import signal
import time

import pytest

from cache_server.entries import EntriesUnavailable, open_layered
from tests.cache_server.entries.replicas import (
    counted,
    replica,
    until,
)

from .proxy import Proxy


@pytest.fixture
def url(sqlite_url):
    """What is remembered is the same above every database; `test_tokens` asks all of them."""
    return sqlite_url


async def test_a_value_of_another_place_or_no_value_at_all_is_refused(url, cleared, make_entry):
    entry, other = make_entry(), make_entry(key="ef" * 32)
    async with replica(url, cleared) as one:
        await one.entries.put(entry)
        await one.entries.put(other)
        await one.find(entry)
        await one.kept()
        client = one.entries._redis._client
        [name] = await client.keys("memopod:entry:*")
        good = await client.get(name)
        for bad in (good.replace(entry.key.encode(), other.key.encode()), b"{}", b"\xff", good[:50]):
            await client.set(name, bad)
            one.memory.drop(entry.namespace, entry.key)
            errors = counted("redis", "error")
            assert await one.find(entry) == entry
            assert counted("redis", "error") == errors + 1
            await one.kept()
            one.entries._breakers["redis"].succeeded()


# --- skipped -------------------------------------------------------------------------------------------


async def test_a_dead_redis_is_skipped_and_used_again_when_it_is_back(url, cleared, redis_server, make_entry):
    entry = make_entry()
    async with replica(url, cleared) as one:
        await one.entries.put(entry)
        redis_server.crash()
        try:
            errors, skipped = counted("redis", "error"), counted("redis", "skipped")
            for _ in range(8):
                one.memory.drop(entry.namespace, entry.key)
                assert await one.find(entry) == entry
            assert counted("redis", "error") > errors
            assert counted("redis", "skipped") > skipped
        finally:
            await asyncio.to_thread(redis_server.start)
        hits = counted("redis", "entry")

        async def used():
            one.memory.drop(entry.namespace, entry.key)
            assert await one.find(entry) == entry
            return counted("redis", "entry") > hits

        await until(used)


async def test_a_redis_that_hangs_costs_its_share_of_a_look_up(url, cleared, redis_server, make_entry):
    entry = make_entry()
    async with replica(url, cleared, share=0.1) as one:
        await one.entries.put(entry)
        await one.find(entry)
        await one.kept()
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            slow, skipped = counted("redis", "slow"), counted("redis", "skipped")
            begun = time.monotonic()
            for _ in range(6):
                one.memory.drop(entry.namespace, entry.key)
                assert await one.find(entry) == entry
            assert time.monotonic() - begun < 8
            assert counted("redis", "slow") > slow
            assert counted("redis", "skipped") > skipped
        finally:
            redis_server.process.send_signal(signal.SIGCONT)


async def test_a_redis_that_answers_late_is_skipped(url, cleared, make_entry):
    entry = make_entry()
    async with Proxy.before(cleared) as proxy, replica(url, proxy.port, share=0.1) as one:
        await one.entries.put(entry)
        proxy.delay = 1.0
        slow = counted("redis", "slow") + counted("redis", "error")
        for _ in range(4):
            one.memory.drop(entry.namespace, entry.key)
            assert await one.find(entry) == entry
        assert counted("redis", "slow") + counted("redis", "error") > slow


async def test_a_database_that_hangs_makes_look_ups_unavailable_and_soon_at_once(served, make_entry):
    entry = make_entry()
    async with open_layered(served.url, timeout=0.4) as entries:
        await until_it_works(lambda: entries.put(entry))
        served.server.hang(True)
        try:
            for _ in range(3):
                with pytest.raises(EntriesUnavailable):
                    await entries.find(entry.namespace, "no such key")
            begun = time.monotonic()
            with pytest.raises(EntriesUnavailable, match="does not answer"):
                await entries.find(entry.namespace, "no such key")
            assert time.monotonic() - begun < 0.4
        finally:
            served.server.hang(False)
        assert await until_it_works(lambda: entries.find(entry.namespace, entry.key)) == entry


async def until_it_works(call):
    async def works():
        try:
            return await call()
        except EntriesUnavailable:
            return None

    return await until(works)


async def test_a_row_that_is_no_entry_is_unavailable_and_the_others_are_not(url, sqlite_database, make_entry):
    entry, damaged = make_entry(), make_entry(key="ef" * 32)
    async with open_layered(url) as entries:
        await entries.put(entry)
        await entries.put(damaged)
        sqlite_database.query(f"UPDATE entries SET outputs = '{{' WHERE id = '{damaged.id}'")
        for _ in range(5):
            with pytest.raises(EntriesUnavailable, match="a row that is no entry"):
                await entries.find(damaged.namespace, damaged.key)
        assert await entries.find(entry.namespace, entry.key) == entry


async def test_whatever_a_layer_fails_with_the_decision_sees_only_unavailable(url, make_entry):
    entry = make_entry()
    async with replica(url) as one:
        await one.entries.put(entry)

        async def broken(place):
            raise ZeroDivisionError

        def broken_at_once(place):
            raise ZeroDivisionError

        one.memory.recall = broken_at_once
        assert await one.find(entry) == entry
        one.sql.look = broken
        with pytest.raises(EntriesUnavailable):
            await one.find(entry)


@pytest.mark.parametrize("given", ["http://user:hunter2@redis", "redis://", "redis://host:port", "unix://"])
async def test_a_url_that_is_not_redis_is_refused_without_repeating_it(sqlite_url, given):
    with pytest.raises(ValueError, match="redis: expected redis://") as raised:
        async with open_layered(sqlite_url, redis=given):
            pass
    assert "hunter2" not in str(raised.value)


async def test_a_redis_that_was_never_there_changes_nothing(sqlite_url, make_entry):
    entry = make_entry()
    async with open_layered(sqlite_url, redis="redis://127.0.0.1:1/0") as entries:
        await entries.put(entry)
        assert await entries.find(entry.namespace, entry.key) == entry
        await entries.retire(entry.id, "test")
        assert await entries.find(entry.namespace, entry.key) is None


# --- whatever happens ----------------------------------------------------------------------------------
