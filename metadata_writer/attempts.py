"""What was tried in vain, how often, and when it is tried again; what fails for long is in quarantine.

A step that only lacks something (an output, a producer's record) is *looked at* again; one that raised an
error has *failed*. Quarantine is a name for failing often: nothing is given up, it is tried again after
ever longer pauses, and people are told.
"""

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from memopod.kube import ApiError
from memopod.mlmd import StoreError
from metadata_writer.observer import TemplateGone, TemplateUnreadable

FORESEEN: Final = (ApiError, StoreError, TemplateGone, TemplateUnreadable)
"""Errors whose text names requests and objects, and no value."""

K = TypeVar("K", bound=Hashable)

_FIRST_DELAY: Final = 0.25
"""Seconds before the second attempt, doubled each time."""
_LONGEST_LOOK: Final = 30.0
"""Seconds: what comes late (an output, a producer's record) comes within seconds."""
_LONGEST_FAILURE: Final = 600.0
"""Seconds: what fails for minutes waits for somebody to mend it."""
_QUARANTINE: Final = 6
"""Failures in a row, eight seconds of them, after which a step counts as one that cannot be recorded."""


@dataclass(slots=True)
class Attempt:
    """`looks` in vain, `failures` in a row, and the last one's kind and message."""

    looks: int = 0
    failures: int = 0
    error: str = ""
    since: float = 0.0
    next_at: float = 0.0

    @property
    def quarantined(self) -> bool:
        """Whether this step counts as one that cannot be recorded."""
        return self.failures >= _QUARANTINE


class Attempts(Generic[K]):
    """Only what is not done is in here; `done` forgets."""

    def __init__(self) -> None:
        self._attempts: dict[K, Attempt] = {}

    def looks(self, key: K) -> int:
        """How often something was missing."""
        attempt = self._attempts.get(key)
        return attempt.looks if attempt is not None else 0

    def looked(self, key: K) -> float:
        """Something is missing; the seconds to wait for it."""
        attempt = self._attempts.setdefault(key, Attempt())
        attempt.failures = 0
        attempt.looks += 1
        return _delay(attempt.looks, _LONGEST_LOOK)

    def failed(self, key: K, error: Exception, *, hopeless: bool = False) -> tuple[float, bool]:
        """It failed; the seconds to wait, and whether it is in quarantine since just now.

        `hopeless`: to try again at once would not help.
        """
        attempt = self._attempts.setdefault(key, Attempt())
        before = attempt.quarantined
        if not attempt.failures:
            attempt.since = time.time()
        attempt.failures = max(attempt.failures + 1, _QUARANTINE if hopeless else 0)
        attempt.error = said(error)
        delay = _delay(attempt.failures, _LONGEST_FAILURE)
        attempt.next_at = time.time() + delay
        return delay, attempt.quarantined and not before

    def done(self, key: K) -> None:
        """Nothing is left to do for it."""
        self._attempts.pop(key, None)

    @property
    def failing(self) -> int:
        """Steps whose last attempt failed."""
        return sum(attempt.failures > 0 for attempt in self._attempts.values())

    def quarantine(self) -> Mapping[K, Attempt]:
        """What cannot be recorded."""
        return {key: attempt for key, attempt in self._attempts.items() if attempt.quarantined}

    def last_error(self) -> Attempt | None:
        """The newest failure of a step that is still failing."""
        failing = [attempt for attempt in self._attempts.values() if attempt.failures]
        return max(failing, key=lambda attempt: attempt.next_at, default=None)


def said(error: Exception) -> str:
    """What people are told of an error: of one that nobody foresaw only its kind, as its text may hold
    values of a step.
    """
    kind = type(error).__name__
    if isinstance(error, FORESEEN):
        return f"{kind}: {error}"
    return f"{kind}: not foreseen; the log says where, and please report it"


def as_json(attempt: Attempt) -> dict[str, Any]:
    """For people and scripts."""
    return {
        "failures": attempt.failures,
        "error": attempt.error,
        "since": attempt.since,
        "next_in_seconds": max(0.0, round(attempt.next_at - time.time(), 1)),
    }


def _delay(tries: int, longest: float) -> float:
    return float(min(longest, _FIRST_DELAY * 2.0 ** min(tries - 1, 20)))
