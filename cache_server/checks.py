"""What the object stores said a moment ago: many decisions about one entry ask only once.

An artifact that is deleted is noticed this much later at most, as if it had been deleted a moment after the
check. Only what is there is remembered: a miss or a failure is asked about again.
"""

import asyncio
import time
from dataclasses import dataclass

from cache_server.artifacts import Artifacts, ArtifactState
from memopod.steps.locations import Location

_MOST = 10_000
"""Answers kept at most; the oldest go first."""


@dataclass(frozen=True, slots=True)
class _Answer:
    asked: float
    task: asyncio.Task[ArtifactState | None]


class Checks:
    """`Artifacts.describe` with a memory of `seconds`, counted from when the question was asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._answers: dict[tuple[str, Location], _Answer] = {}

    async def describe(
        self, artifacts: Artifacts, namespace: str, location: Location
    ) -> ArtifactState | None:
        """See `Artifacts.describe`. Who asks while a question is under way gets its answer too.

        What one namespace may ask is not told to another.
        """
        if self._seconds <= 0:
            return await artifacts.describe(location)
        key = namespace, location
        answer = self._answers.get(key)
        if answer is None or time.monotonic() - answer.asked >= self._seconds:
            work = artifacts.describe(location)
            answer = _Answer(time.monotonic(), asyncio.create_task(work, name=f"check:{location.bucket}"))
            answer.task.add_done_callback(lambda task: self._ended(key, task))
            self._answers.pop(key, None)
            self._answers[key] = answer
            while len(self._answers) > _MOST:
                del self._answers[next(iter(self._answers))]
        # One who gives up (a decision has a deadline) does not take the answer from the others.
        return await asyncio.shield(answer.task)

    def _ended(self, key: tuple[str, Location], task: asyncio.Task[ArtifactState | None]) -> None:
        answer = self._answers.get(key)
        failed = task.cancelled() or task.exception() is not None or task.result() is None
        if failed and answer is not None and answer.task is task:
            del self._answers[key]
