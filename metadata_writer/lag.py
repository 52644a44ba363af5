"""How long steps wait for their record."""

import time
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from metadata_writer import metrics

K = TypeVar("K", bound=Hashable)


class Lag(Generic[K]):
    """Seconds from the event that showed a step to its record, of the last thousand."""

    def __init__(self) -> None:
        self._since: dict[K, float] = {}
        self._last: deque[float] = deque(maxlen=1000)

    def begin(self, key: K) -> None:
        """Something new was seen of a step."""
        self._since.setdefault(key, time.monotonic())

    def end(self, key: K, *, written: bool) -> None:
        """Nothing waits any more; it counts where something was `written`."""
        since = self._since.pop(key, None)
        if since is not None and written:
            self._last.append(time.monotonic() - since)
            metrics.LAG.observe(time.monotonic() - since)

    def oldest(self) -> float:
        """How long the step waits that waits longest."""
        first = next(iter(self._since.values()), None)
        return 0.0 if first is None else time.monotonic() - first

    def quantiles(self) -> dict[str, float | None]:
        """For people and scripts."""
        lags = sorted(self._last)
        return {
            name: round(lags[int(share * (len(lags) - 1))], 3) if lags else None
            for name, share in (("p50", 0.5), ("p99", 0.99))
        }
