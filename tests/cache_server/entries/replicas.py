"""Replicas of the entries in one process, each with the clock of a test."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

from prometheus_client import REGISTRY

from cache_server.entries import LayeredEntries, open_entries
from cache_server.entries.leases import LEASE_SECONDS, Leases
from cache_server.entries.memory import MemoryLayer
from cache_server.entries.shared import RedisLayer

SECOND = timedelta(seconds=1)
PATIENT = 5.0
"""Seconds for Redis where a test is not about its slowness: the machine may be loaded."""


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


async def subscribed(*replicas):
    """Wait until each of them has heard from Redis that it will be told."""

    async def are():
        return all(r.entries._leases.epoch("nothing of this name") > 0 for r in replicas)

    await until(are)


# --- quick ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def deaf(url, redis_port):
    """A replica that hears of no change."""
    async with open_entries(url, call_timeout=10) as sql:
        made = Replica(sql, redis_port, PATIENT)
        try:
            yield made
        finally:
            await made.entries.close()
