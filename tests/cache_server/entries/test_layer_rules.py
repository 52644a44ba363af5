"""In whatever order replicas read, write and wait, none finds what did not stand within the last lease."""

import asyncio
import uuid
from contextlib import AsyncExitStack
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from cache_server.entries import open_entries
from cache_server.entries.leases import LEASE_SECONDS
from tests.cache_server.entries.replicas import (
    SECOND,
    Clock,
    deaf,
)

KEYS = st.sampled_from(["00", "01"])
BY = st.sampled_from([None, 0, 1])


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


def test_whatever_was_found_stood_within_the_last_lease(tmp_path, redis_server, make_entry):
    run_state_machine_as_test(
        lambda: Rules(tmp_path, redis_server.port, make_entry),
        settings=settings(max_examples=60, stateful_step_count=30),
    )
