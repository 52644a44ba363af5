"""Answers that are kept for a while, and asked for once however many wait for them."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """At most `size` answers by key, each for `seconds`; those that were not used for longest go first."""

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._size = size
        self._answers: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._asked: dict[Hashable, asyncio.Task[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return self._fresh(key) is not None

    def put(self, key: Hashable, answer: T) -> None:
        """Keep an answer."""
        self._answers[key] = time.monotonic() + self._seconds, answer
        self._answers.move_to_end(key)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer that is kept, or that `ask` gives; whoever else wants it meanwhile waits for the same.

        A caller that gives up leaves the question to the others. What `ask` raises is raised to all of
        them, and not kept.
        """
        known = self._fresh(key)
        if known is not None:
            self._answers.move_to_end(key)
            return known[1]
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, ask), name="review")
            self._asked[key] = task
            task.add_done_callback(_looked_at)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is asked."""
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await ask()
            self.put(key, answer)
            return answer
        finally:
            del self._asked[key]

    def _fresh(self, key: Hashable) -> tuple[float, T] | None:
        known = self._answers.get(key)
        return known if known is not None and time.monotonic() < known[0] else None


def _looked_at(task: "asyncio.Task[T]") -> None:
    """All that waited may be gone: then nobody else looks at what was raised."""
    if not task.cancelled():
        task.exception()
