"""A circuit breaker: what has failed several times in a row is left alone for a while."""

import time
from collections.abc import Callable


class Breaker:
    """Closed until `failures` in a row, then open for `pause` seconds, then one probe at a time.

    A probe that fails doubles the pause, up to `longest`; one that succeeds closes the breaker.
    """

    def __init__(
        self, *, failures: int = 3, pause: float = 1.0, longest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._limit = failures
        self._first_pause = pause
        self._longest = longest
        self._clock = clock
        self._failures = 0
        self._pause = pause
        self._closed_again_at = 0.0

    @property
    def open(self) -> bool:
        """Whether it has opened and no call has succeeded since."""
        return self._failures >= self._limit

    def allows(self) -> bool:
        """Whether a call may be made now; `succeeded` or `failed` must tell how it ended."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._closed_again_at:
            return False
        # One probe; if nobody tells how it ended, the next one may follow after the same pause.
        self._closed_again_at = now + self._pause
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures = 0
        self._pause = self._first_pause

    def failed(self) -> bool:
        """A call was not answered. Returns whether that has opened the breaker."""
        was_open = self.open
        self._failures += 1
        if was_open:
            self._pause = min(self._pause * 2, self._longest)
        if self.open:
            self._closed_again_at = self._clock() + self._pause
        return self.open and not was_open
