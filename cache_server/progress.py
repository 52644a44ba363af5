"""Whether a leader gets anywhere with the Pods that wait for it."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from cache_server.finish import is_held
from cache_server.waiting import is_waiting


class Progress:
    """Tells for how long Pods have waited for this leader while none of its decisions was carried out.

    A follower's sweeper lets such Pods go in time, so that none stays overdue; but each was held for as
    long as it may be, for nothing.
    """

    def __init__(self) -> None:
        self._waiting_since: float | None = None
        self._last = 0.0

    def made(self) -> None:
        """A decision was carried out."""
        self._last = time.monotonic()

    def missing_for(self, pods: Iterable[Mapping[str, Any]], *, leads: bool) -> float:
        """Seconds; 0 for a process that does not lead, or that no Pod waits for. To be asked regularly."""
        moment = time.monotonic()
        if not leads or not any(is_held(pod) and not is_waiting(pod) for pod in pods):
            self._waiting_since = None
            return 0.0
        if self._waiting_since is None:
            self._waiting_since = moment
        return moment - max(self._last, self._waiting_since)
