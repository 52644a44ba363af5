"""Tasks that belong to somebody: named, one a key, their failures told, all ended at shutdown."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

_log = structlog.get_logger()


class Jobs:
    """Runs at most one task for each key, and `concurrency` of them at once (None: all); the others wait.

    The number of waiting tasks is bounded by the number of Pods that the informers hold.
    """

    def __init__(self, concurrency: int | None, *, on_end: Callable[[str], None] = lambda _key: None) -> None:
        self._slots = None if concurrency is None else asyncio.Semaphore(concurrency)
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._in_slots: set[asyncio.Task[Any] | None] = set()
        self._draining = False
        self._cut = False

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, key: str, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start `work()` under `key`, which must not be running. Nothing is started any more once drained."""
        if self._draining:
            return
        task = asyncio.create_task(self._run(work), name=name)
        self._tasks[key] = task
        task.add_done_callback(lambda ended: self._ended(key, ended))

    def ended_cleanly(self) -> bool:
        """Whether it was drained, and no task had to be cancelled."""
        return self._draining and not self._tasks and not self._cut

    async def drain(self, timeout: float) -> int:  # noqa: ASYNC109 (bounds a set of tasks)
        """Let tasks end by themselves for so many seconds, then cancel the rest; returns how many."""
        self._draining = True
        tasks = list(self._tasks.values())
        if not tasks:
            return 0
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()
        self._cut = self._cut or bool(late)
        await asyncio.gather(*late, return_exceptions=True)
        return len(late)

    def leave_slot(self) -> None:
        """To be called by a task that mostly waits from now on: another one may begin."""
        task = asyncio.current_task()
        if self._slots is not None and task in self._in_slots:
            self._in_slots.discard(task)
            self._slots.release()

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._slots is not None:
            await self._slots.acquire()
            self._in_slots.add(asyncio.current_task())
        try:
            await work()
        finally:
            self.leave_slot()

    def _ended(self, key: str, task: "asyncio.Task[None]") -> None:
        del self._tasks[key]
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task failed", task=task.get_name(), exc_info=task.exception())
        self._on_end(key)
