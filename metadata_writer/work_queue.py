"""A queue of keys, not of events: what matters of a step is its newest state, looked up at its turn.

A key waits at most once, however often it changes, and is never worked on by two tasks; one that
changes while it is worked on waits again afterwards. So the queue is bounded by the number of steps.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """First come, first served; every key that `get` returns must be handed back with `done`."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[K, None] = OrderedDict()
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Keys that wait for their turn, without those that `add_later` put off."""
        return len(self._waiting) + len(self._again)

    def add(self, key: K) -> None:
        """Let a key have its turn, once."""
        self._forget_timer(key)
        if key in self._active:
            self._again.add(key)
        else:
            self._waiting.setdefault(key)
        self._filled.set()
        self._idle.clear()

    def add_later(self, key: K, delay: float) -> None:
        """Add a key in `delay` seconds, unless somebody adds it sooner."""
        if key in self._again or key in self._waiting:
            return
        self._forget_timer(key)
        self._timers[key] = asyncio.get_running_loop().call_later(delay, self.add, key)

    async def get(self) -> K:
        """The next key; waits for one."""
        (key,) = await self.take(1, 0.0)
        return key

    async def take(self, most: int, linger: float) -> list[K]:
        """The next keys, `most` at most: waits for one, and then `linger` seconds for more."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        if linger and len(self._waiting) < most:
            await asyncio.sleep(linger)
        taken: list[K] = []
        while self._waiting and len(taken) < most:
            key, _ = self._waiting.popitem(last=False)
            self._active.add(key)
            taken.append(key)
        self._taken.set()
        return taken or await self.take(most, linger)  # others were quicker

    async def fewer_than(self, waiting: int) -> None:
        """Wait until fewer keys wait."""
        while len(self._waiting) >= waiting:
            self._taken.clear()
            await self._taken.wait()

    def done(self, key: K) -> None:
        """The work on a key has ended."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        if not self._waiting and not self._active:
            self._idle.set()

    async def join(self) -> None:
        """Wait until nothing waits and nothing is worked on. Keys that are put off do not count."""
        await self._idle.wait()

    def close(self) -> None:
        """Drop the keys that are put off."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _forget_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
