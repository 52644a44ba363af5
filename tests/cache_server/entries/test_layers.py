"""Memory and Redis above SQL: quick, skipped when they fail, and never the reason of a wrong reuse."""

import asyncio
import signal
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from prometheus_client import REGISTRY
from redis.exceptions import RedisError

from cache_server.entries import EntriesUnavailable, LayeredEntries, open_entries, open_layered
from cache_server.entries.leases import LEASE_SECONDS, Leases
from cache_server.entries.memory import MemoryLayer
from cache_server.entries.shared import RedisLayer
from memopod.steps import Outputs

from .proxy import Proxy

SECOND = timedelta(seconds=1)
KEYS = st.sampled_from(["00", "01"])
BY = st.sampled_from([None, 0, 1])
PATIENT = 5.0
"""Seconds for Redis where a test is not about its slowness: the machine may be loaded."""


@pytest.fixture
def url(sqlite_url):
    """What is remembered is the same above every database; `test_tokens` asks all of them."""
    return sqlite_url


class Clock:
    """Time that passes when a test says so. `frozen`, a lease never runs out."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 1e-6
        return self.now


class Replica:
    """One process's entries: layers over a database of its own connection, with the clock of a test."""

    def __init__(self, sql, redis_port, share):
        self.sql = sql
        self.clock = Clock()
        self.memory = MemoryLayer(clock=self.clock)
        self.looks = 0
        self.gate = None
        self._look, sql.look = sql.look, self.counted
        redis = None
        if redis_port is not None:
            redis = RedisLayer(f"redis://127.0.0.1:{redis_port}/0", timeout=share)
        leases = Leases(clock=self.clock)
        self.entries = LayeredEntries(sql, self.memory, redis, timeout=10, share=share, leases=leases)

    async def counted(self, place):
        self.looks += 1
        reading = await self._look(place)
        if self.gate is not None:
            # The database has answered, and the answer is slow to come.
            gate, self.gate = self.gate, None
            gate.read.set()
            await gate.go_on.wait()
        return reading

    def slow(self):
        self.gate = Gate()
        return self.gate

    def later(self, seconds=LEASE_SECONDS):
        self.clock.now += seconds

    async def find(self, entry):
        return await self.entries.find(entry.namespace, entry.key)

    async def kept(self):
        """Wait until what was to be written to Redis is written."""
        while self.entries._background:
            await asyncio.gather(*self.entries._background)


class Gate:
    def __init__(self):
        self.read, self.go_on = asyncio.Event(), asyncio.Event()


@asynccontextmanager
async def replica(url, redis_port=None, share=PATIENT):
    async with open_entries(url, call_timeout=10) as sql:
        made = Replica(sql, redis_port, share)
        listening = asyncio.create_task(made.entries.listen())
        try:
            yield made
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await made.entries.close()


def counted(layer, result):
    labels = {"layer": layer, "result": result}
    return REGISTRY.get_sample_value("memopod_entries_lookups_total", labels) or 0


async def until(condition, seconds=30):
    async with asyncio.timeout(seconds):
        while not (value := await condition()):  # noqa: ASYNC110 (polls another process)
            await asyncio.sleep(0.02)
    return value


@pytest.fixture
async def cleared(redis_server):
    """An empty Redis; its port."""
    redis = RedisLayer(f"redis://127.0.0.1:{redis_server.port}/0", timeout=PATIENT)
    await redis._client.flushall()
    await redis.close()
    return redis_server.port


async def subscribed(*replicas):
    """Wait until each of them has heard from Redis that it will be told."""

    async def are():
        return all(r.entries._leases.epoch("nothing of this name") > 0 for r in replicas)

    await until(are)


# --- quick ---------------------------------------------------------------------------------------------


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


class Rules(RuleBasedStateMachine):
    """Two replicas that are told nothing, a writer beside them, and a history of what stood when."""

    def __init__(self, folder, redis_port, make_entry):
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.make_entry = make_entry
        self.clock = Clock()
        self.history = {"00": [(0.0, None)], "01": [(0.0, None)]}
        self.made = 0
        self.held = []
        url = f"sqlite:///{folder}/{uuid.uuid4().hex}.db"
        self.writer, *self.replicas = self.runner.run(self._open(url, redis_port))

    async def _open(self, url, redis_port):
        writer = await self.stack.enter_async_context(open_entries(url))
        opened = [await self.stack.enter_async_context(deaf(url, redis_port)) for _ in range(2)]
        for each in opened:
            each.memory._clock = each.entries._leases.clock = self.clock
        return writer, *opened

    def teardown(self):
        self.runner.run(self._land())
        self.runner.run(self.stack.aclose())
        self.runner.close()

    async def _land(self):
        for gate, looking in self.held:
            gate.go_on.set()
            await looking
        for each in self.replicas:
            await each.kept()
        self.held.clear()

    def stands(self, key, entry):
        self.history[key].append((self.clock(), entry))

    @rule(key=KEYS, by=BY)
    def put(self, key, by):
        self.made += 1
        first = self.make_entry(key=key)
        entry = replace(first, finished_at=first.finished_at + self.made * SECOND)
        writer = self.writer if by is None else self.replicas[by].entries
        assert self.runner.run(writer.put(entry))
        self.stands(key, entry.id)

    @rule(key=KEYS, by=BY)
    def retire(self, key, by):
        standing = self.history[key][-1][1]
        if standing is not None:
            writer = self.writer if by is None else self.replicas[by].entries
            assert self.runner.run(writer.retire(standing, "test"))
            self.stands(key, None)

    @rule(seconds=st.sampled_from([0.3, 0.7, 1.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(key=KEYS, by=st.sampled_from([0, 1]))
    def hold_a_read(self, key, by):
        """A look-up whose answer from the database comes late, and is remembered when it comes."""
        replica = self.replicas[by]
        if replica.gate is None and not self.held:
            self.runner.run(self._hold(replica, key))

    async def _hold(self, replica, key):
        gate = replica.slow()
        looking = asyncio.create_task(replica.entries.find("pipelines", key))
        reading = asyncio.create_task(gate.read.wait())
        await asyncio.wait({looking, reading}, return_when=asyncio.FIRST_COMPLETED)
        if looking.done():
            replica.gate = None
            reading.cancel()
        else:
            self.held.append((gate, looking))
            self.held_of = replica, key

    @rule()
    def let_go(self):
        self.runner.run(self._land())

    @rule(key=KEYS, by=st.sampled_from([0, 1]))
    def find(self, key, by):
        began = self.clock()
        if self.held and self.held_of == (self.replicas[by], key):
            return  # it would join what is held
        found = self.runner.run(self.replicas[by].entries.find("pipelines", key))
        self.runner.run(self.replicas[by].kept())
        moments = self.history[key]
        ends = [moment for moment, _ in moments[1:]] + [float("inf")]
        recent = {e for (_, e), end in zip(moments, ends, strict=True) if end > began - LEASE_SECONDS}
        assert (None if found is None else found.id) in recent


@asynccontextmanager
async def deaf(url, redis_port):
    """A replica that hears of no change."""
    async with open_entries(url, call_timeout=10) as sql:
        made = Replica(sql, redis_port, PATIENT)
        try:
            yield made
        finally:
            await made.entries.close()


def test_whatever_was_found_stood_within_the_last_lease(tmp_path, redis_server, make_entry):
    run_state_machine_as_test(
        lambda: Rules(tmp_path, redis_server.port, make_entry),
        settings=settings(max_examples=60, stateful_step_count=30),
    )
