"""Sends OpenLineage events to a server or a file, beside the store and never in its way.

Sent after a record was written, in order, each until it is taken; the queue is bounded, and what it loses
is counted and told. A writer that is killed in between loses what is queued: the store is the record, these
are news.
"""

import asyncio
import json
import time
from collections import deque
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import structlog

from memopod.kube.backoff import Backoff
from metadata_writer import metrics
from metadata_writer.openlineage import events
from metadata_writer.records import State, StepRecord

_QUEUE: Final = 16 << 20
"""Bytes: some 8,000 events of a usual step."""
_TIMEOUT: Final = 10.0
"""Seconds that the server may take."""
_LAST: Final = 5.0
"""Seconds to send what is queued when the writer ends."""
_LATER: Final = frozenset({408, 425, 429})
"""Of the answers that mean that an event will never be taken, those that do not."""
_TELL_EVERY: Final = 60.0


class LineageEvents:
    """`target` is the URL that takes a POST for each event, or a file to which lines are appended.

    At most `limit` bytes wait; beyond that the oldest go.
    """

    def __init__(self, target: str, *, limit: int = _QUEUE) -> None:
        self._target = target
        self._limit = limit
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._filled = asyncio.Event()
        self._told = -_TELL_EVERY
        self._log = structlog.get_logger()

    def send(self, record: StepRecord, before: State | None) -> None:
        """Queue the events of a record; `before` is the state that the store had."""
        for body in events(record, before):
            self._waiting.append(json.dumps(body).encode())
            self._size += len(self._waiting[-1])
        while self._size > self._limit and len(self._waiting) > 1:
            self._size -= len(self._waiting.popleft())
            metrics.EVENTS.labels(outcome="dropped").inc()
            self._tell_dropped()
        self._filled.set()

    async def run(self) -> None:
        """Send until cancelled; then what is queued is sent, for a few seconds at most."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as session:
            try:
                while True:
                    await self._filled.wait()
                    await self._send_all(session)
                    self._filled.clear()
            except asyncio.CancelledError:
                try:
                    await asyncio.wait_for(self._send_all(session), _LAST)
                except TimeoutError:
                    metrics.EVENTS.labels(outcome="dropped").inc(len(self._waiting))
                    self._log.warning("OpenLineage events are lost", events=len(self._waiting))
                raise

    async def _send_all(self, session: aiohttp.ClientSession) -> None:
        backoff = Backoff()
        while self._waiting:
            body = self._waiting[0]
            try:
                await self._deliver(session, body)
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                self._log.warning("an OpenLineage event was not taken", error=type(error).__name__)
                await asyncio.sleep(backoff.next())
                continue
            backoff.reset()
            if self._waiting and self._waiting[0] is body:  # else it was dropped meanwhile
                self._size -= len(self._waiting.popleft())

    async def _deliver(self, session: aiohttp.ClientSession, body: bytes) -> None:
        if urlsplit(self._target).scheme not in ("http", "https"):
            await asyncio.to_thread(_append, Path(self._target), body)
            metrics.EVENTS.labels(outcome="sent").inc()
            return
        headers = {"Content-Type": "application/json"}
        async with session.post(self._target, data=body, headers=headers) as response:
            if 400 <= response.status < 500 and response.status not in _LATER:
                self._log.warning("an OpenLineage event was refused", status=response.status)
                metrics.EVENTS.labels(outcome="refused").inc()
                return
            response.raise_for_status()
        metrics.EVENTS.labels(outcome="sent").inc()

    def _tell_dropped(self) -> None:
        if time.monotonic() - self._told > _TELL_EVERY:
            self._told = time.monotonic()
            self._log.warning(
                "OpenLineage events are dropped, the oldest first: the server does not take them",
                waiting=len(self._waiting),
            )


def _append(path: Path, body: bytes) -> None:
    with path.open("ab") as file:
        file.write(body + b"\n")
