"""Calls wait here for a free worker; workers that die are replaced.

A pool is made of lanes. SQLite allows one writer at a time, and a second one is not delayed but refused,
so there one lane with one worker takes the writes and another the reads, which never wait for a
write. MySQL and PostgreSQL sort writers out themselves: one lane takes all.

Each lane's queue is bounded. A call that waits keeps its place until its deadline; a call whose worker
died is asked again elsewhere if it is a read; if it is a write, nobody knows whether it was committed
before the worker died, and `repeat` decides what its client is told.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from metadata_store.frames import Answer
from metadata_store.near import Near
from metadata_store.process import CannotOpen, Opening, WorkerProcess
from metadata_store.repeat import outcome_unknown
from metadata_store.rpcs import LISTS, RELATIVES, writes

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CHECK_SECONDS = 5.0
_FORSAKEN_SECONDS = 10.0
"""How long a read that nobody waits for any more may keep its worker."""
_AHEAD = 4
_TRIES = 6
"""How many workers a read may be given to: more than there are by default, since those that are killed
together can each take it along before the server hears of their end. A read that kills its worker must
not kill one after the other for ever."""


HEAVY: frozenset[str] = LISTS | RELATIVES.keys() | {"GetLineageSubgraph", "PutLineageSubgraph"}
"""RPCs that may take long: those over many rows."""


class Overloaded(Exception):
    """The queue is full."""


class NoWorker(Exception):
    """There is no worker, and none can open the database."""


class _Call:
    """A call that waits or runs. Its caller may give up at any time by cancelling `answer`."""

    __slots__ = ("answer", "heavy", "number", "request", "rpc", "tries")

    def __init__(self, rpc: str, request: bytes, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.rpc = rpc
        self.request = request
        self.number = number
        self.heavy = rpc in HEAVY
        self.tries = 1 if writes(rpc) else _TRIES
        self.answer: asyncio.Future[Answer] = loop.create_future()

    def expire(self) -> None:
        """Its time is up."""
        if not self.answer.done():
            self.answer.set_exception(TimeoutError())


class Lane:
    """Workers that share one queue.

    Heavy calls never take the last worker, so that a light one finds one soon. A busy worker is given up
    to _AHEAD light reads ahead: it then goes from one to the next without falling asleep. Nothing is
    put behind a write, which may wait for a lock, unless there is only one worker anyway.
    """

    def __init__(self, opening: Opening, *, workers: int, depth: int, longest_call: float) -> None:
        self._opening = opening
        self._size = workers
        self._depth = depth
        self._longest_call = longest_call
        self._light: deque[_Call] = deque()
        self._heavy: deque[_Call] = deque()
        self._idle: deque[WorkerProcess] = deque()
        self._running: dict[WorkerProcess, deque[_Call]] = {}
        self._heavy_running = 0
        self._numbers = itertools.count()
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = False
        self._trouble: str | None = None
        self._loop = asyncio.get_running_loop()
        self.replaced = 0
        self.last_answer = time.monotonic()

    async def start(self) -> None:
        """Open all workers. Raises CannotOpen if the database cannot be opened."""
        opened = await asyncio.gather(*(WorkerProcess.open(self._opening) for _ in range(self._size)))
        for number, process in enumerate(opened):
            self._adopt(process)
            self._keepers.append(asyncio.create_task(self._keep(process), name=f"store worker {number}"))

    async def call(self, rpc: str, request: bytes, seconds: float) -> Answer:
        """Hand the call to a free worker, or wait for one. Raises as `Pool.call`."""
        if self._trouble is not None:
            raise NoWorker(self._trouble)
        call = _Call(rpc, request, next(self._numbers), self._loop)
        process = self._place(call)
        if process is not None:
            self._give(process, call)
        elif self.waiting >= self._depth:
            raise Overloaded(f"{self._depth} calls wait for a worker already; try again later")
        else:
            (self._heavy if call.heavy else self._light).append(call)
        timer = self._loop.call_later(seconds, call.expire)
        try:
            return await call.answer
        finally:  # a worker that runs it just goes on
            timer.cancel()
            if process is None:
                queue = self._heavy if call.heavy else self._light
                if call in queue:
                    queue.remove(call)

    async def close(self) -> None:
        """End the workers; calls under way are cut off, so let them finish first."""
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(process.end() for process in list(self._running)))

    @property
    def waiting(self) -> int:
        """How many calls wait for a worker."""
        return len(self._light) + len(self._heavy)

    @property
    def pids(self) -> list[int]:
        """The processes, for tests and operators."""
        return [process.pid for process in self._running]

    def _adopt(self, process: WorkerProcess) -> None:
        self._running[process] = deque()
        self._trouble = None
        process.on_answer = self._answered
        process.on_lost = self._lost
        self._feed(process)

    def _place(self, call: _Call) -> WorkerProcess | None:
        """The worker that can take the call now, if there is one."""
        if call.heavy and self._heavy_running >= max(1, self._size - 1):
            return None
        if self._idle:
            return self._idle.popleft()
        busy = [process for process, calls in self._running.items() if self._goes_behind(call, calls)]
        return min(busy, key=lambda process: len(self._running[process]), default=None)

    def _goes_behind(self, call: _Call, calls: deque[_Call]) -> bool:
        if not 0 < len(calls) < _AHEAD or call.heavy or any(each.heavy for each in calls):
            return False
        return self._size == 1 or not (writes(call.rpc) or writes(calls[-1].rpc))

    def _give(self, process: WorkerProcess, call: _Call) -> None:
        self._running[process].append(call)
        self._heavy_running += call.heavy
        process.send(call.rpc, call.request)

    def _feed(self, process: WorkerProcess) -> None:
        """Give the worker the call that waits longest and that it may have; else it is idle."""
        calls = self._running[process]
        while (call := self._first(calls)) is not None:
            if not call.answer.done():
                self._give(process, call)
                return
        if not calls:
            self._idle.append(process)

    def _first(self, calls: deque[_Call]) -> _Call | None:
        if calls:
            fits = self._light and self._goes_behind(self._light[0], calls)
            return self._light.popleft() if fits else None
        queues = [self._light] if self._light else []
        if self._heavy and self._heavy_running < max(1, self._size - 1):
            queues.append(self._heavy)
        oldest = min(queues, key=lambda queue: queue[0].number, default=None)
        return oldest.popleft() if oldest is not None else None

    def _answered(self, process: WorkerProcess, answer: Answer) -> None:
        self.last_answer = time.monotonic()
        call = self._running[process].popleft()
        self._heavy_running -= call.heavy
        if not call.answer.done():
            call.answer.set_result(answer)
        self._feed(process)

    def _lost(self, process: WorkerProcess) -> None:
        with contextlib.suppress(ValueError):  # it was busy
            self._idle.remove(process)
        calls = self._running.pop(process)
        self._heavy_running -= sum(call.heavy for call in calls)
        if calls:
            calls[0].tries -= 1  # it began none of those behind
        for call in reversed(calls):
            if call.answer.done():
                continue
            if call.tries > 0 and not self._closing:
                (self._heavy if call.heavy else self._light).appendleft(call)
            else:
                call.answer.set_result(outcome_unknown(call.rpc, call.request, "the worker process ended"))
        while self._idle and self.waiting:
            before = self.waiting
            self._feed(self._idle.popleft())
            if self.waiting == before:
                break

    def _refuse(self, text: str) -> None:
        """Keep nobody waiting until a worker is there again."""
        self._trouble = text
        for queue in (self._light, self._heavy):
            while queue:
                call = queue.popleft()
                if not call.answer.done():
                    call.answer.set_exception(NoWorker(text))

    async def _keep(self, process: WorkerProcess) -> None:
        """Watch one worker for ever, and put another in its place when it is lost."""
        log = structlog.get_logger()
        while True:
            await self._until_lost(process)
            log.warning("worker lost", pid=process.pid, will="be replaced")
            await process.end(kill=True)
            process = await self._reopen()
            self.replaced += 1
            self._adopt(process)
            log.info("worker replaced", pid=process.pid)

    async def _until_lost(self, process: WorkerProcess) -> None:
        while not process.lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_SECONDS):
                    await process.lost.wait()
            since = process.busy_since
            limit = _FORSAKEN_SECONDS if self._forsaken(process) else self._longest_call
            if since is not None and time.monotonic() - since > limit:
                structlog.get_logger().error("call takes too long", pid=process.pid, will="end its worker")
                process.kill()

    def _forsaken(self, process: WorkerProcess) -> bool:
        calls = self._running.get(process)
        if not calls:
            return False
        return calls[0].answer.done() and not writes(calls[0].rpc)

    async def _reopen(self) -> WorkerProcess:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await WorkerProcess.open(self._opening)
            except (CannotOpen, OSError) as error:
                structlog.get_logger().error("cannot open the database", error=str(error), again_in=pause)
            if not self._running:
                self._refuse("no worker can open the database; try again later")
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (spreads load, guards nothing)
            pause = min(pause * 2, _LONGEST_PAUSE)


class Pool:
    """The lanes, and which call goes to which; `near` has the first look at each."""

    def __init__(
        self,
        opening: Opening,
        *,
        workers: int,
        one_writer: bool,
        depth: int,
        longest_call: float,
        near: Near | None = None,
    ) -> None:
        def lane(size: int) -> Lane:
            return Lane(opening, workers=size, depth=depth, longest_call=longest_call)

        self._writes = lane(1 if one_writer else workers)
        self._reads = lane(workers - 1) if one_writer and workers > 1 else self._writes
        self._longest_call = longest_call
        self._near = near

    @property
    def lanes(self) -> dict[str, Lane]:
        """The lanes by name."""
        if self._reads is self._writes:
            return {"all": self._writes}
        return {"writes": self._writes, "reads": self._reads}

    @property
    def last_answer(self) -> float:
        """When the database last answered any call, on the monotonic clock."""
        return max(lane.last_answer for lane in self.lanes.values())

    @property
    def pids(self) -> list[int]:
        """All worker processes."""
        return [pid for lane in self.lanes.values() for pid in lane.pids]

    async def start(self) -> None:
        """Open all workers. Raises CannotOpen if the database cannot be opened."""
        await self._all(Lane.start)

    async def close(self) -> None:
        """End the workers."""
        await self._all(Lane.close)

    async def call(self, rpc: str, request: bytes, seconds: float | None) -> Answer:
        """Answer one call within so many seconds.

        Raises Overloaded if the queue is full, NoWorker if no worker can open the database, and
        TimeoutError at the deadline (without one: at the longest time that any call may take).
        """
        if self._near is not None and (answer := await self._near.answer(rpc, request)) is not None:
            return answer
        lane = self._writes if writes(rpc) else self._reads
        limit = self._longest_call if seconds is None else min(seconds, self._longest_call)
        return await lane.call(rpc, request, limit)

    async def _all(self, action: Callable[[Lane], Awaitable[None]]) -> None:
        await asyncio.gather(*(action(lane) for lane in self.lanes.values()))
