"""How long to wait before the next try."""

import random


class Backoff:
    """Exponential, with jitter: `first`, twice that, ... up to `longest` seconds, each times 0.5 - 1."""

    def __init__(self, *, first: float = 0.2, longest: float = 10.0) -> None:
        self._first = first
        self._longest = longest
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait now; longer each time."""
        delay = min(self._longest, self._first * 2.0 ** min(self._tries, 30))
        self._tries += 1
        # Spreads clients in time; guards no secret.
        return delay * random.uniform(0.5, 1.0)  # noqa: S311

    def reset(self) -> None:
        """Start again from the first delay: the last try succeeded."""
        self._tries = 0
