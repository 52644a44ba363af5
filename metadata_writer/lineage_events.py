"""Sends OpenLineage events to a server or a file, beside the store and never in its way.

Sent after a record was written, in order, each until it is taken; the queue is bounded, and what it loses
is counted. A writer that is killed in between loses what is queued: the store is the record, these are news.
"""

import asyncio
import json
from collections import deque
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import structlog

from memopod.kube.backoff import Backoff
from metadata_writer import metrics
from metadata_writer.openlineage import events
from metadata_writer.records import State, StepRecord

_QUEUE: Final = 10_000
_TIMEOUT: Final = 10.0
"""Seconds that the server may take."""
_REFUSED: Final = range(400, 500)
"""Answers that mean this event will never be taken."""


class LineageEvents:
    """`target` is the URL that takes a POST for each event, or a file to which lines are appended."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._waiting: deque[dict[str, Any]] = deque()
        self._filled = asyncio.Event()
        self._log = structlog.get_logger()

    def send(self, record: StepRecord, before: State | None) -> None:
        """Queue the events of a record; `before` is the state that the store had."""
        for body in events(record, before):
            if len(self._waiting) >= _QUEUE:
                self._waiting.popleft()
                metrics.EVENTS.labels(outcome="dropped").inc()
            self._waiting.append(body)
        self._filled.set()

    async def run(self) -> None:
        """Send until cancelled; then what is queued is tried once more."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as session:
            backoff = Backoff()
            while True:
                await self._filled.wait()
                while self._waiting:
                    try:
                        await self._deliver(session, self._waiting[0])
                    except (OSError, aiohttp.ClientError, TimeoutError) as error:
                        self._log.warning("an OpenLineage event was not taken", error=type(error).__name__)
                        await asyncio.sleep(backoff.next())
                        continue
                    backoff.reset()
                    self._waiting.popleft()
                self._filled.clear()

    async def _deliver(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        if urlsplit(self._target).scheme not in ("http", "https"):
            await asyncio.to_thread(_append, Path(self._target), body)
            metrics.EVENTS.labels(outcome="sent").inc()
            return
        async with session.post(self._target, json=body) as response:
            if response.status in _REFUSED:
                self._log.warning("an OpenLineage event was refused", status=response.status)
                metrics.EVENTS.labels(outcome="refused").inc()
                return
            response.raise_for_status()
        metrics.EVENTS.labels(outcome="sent").inc()


def _append(path: Path, body: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(body) + "\n")
