"""What one process knows of the namespaces' tokens, and for how long it may rely on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LEASE_SECONDS: Final = 1.0
"""How long a token may be relied on, counted from before the database was asked for it.

Whoever takes an entry back and waits so long after the commit knows that no look-up which begins later
is answered with it, in any process, whether or not that heard of it. It costs each process one question
to the database a second and namespace in use.
"""

_MOST_NAMESPACES: Final = 10_000


@dataclass(slots=True)
class _Known:
    token: str | None = None
    until: float = 0.0
    not_before: float = 0.0


class Leases:
    """The tokens, each until its lease runs out. Times are those of `clock`, seconds."""

    def __init__(
        self, *, seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self.clock = clock
        self._known: dict[str, _Known] = {}
        self._not_before = 0.0

    def token(self, namespace: str) -> str | None:
        """The namespace's token, None when the database has to be asked."""
        known = self._known.get(namespace)
        return known.token if known is not None and self.clock() < known.until else None

    def epoch(self, namespace: str) -> float:
        """When the namespace was last forgotten: what was asked before that is no answer any more."""
        known = self._known.get(namespace)
        return max(self._not_before, known.not_before if known is not None else 0.0)

    def learn(self, namespace: str, token: str | None, *, asked_at: float) -> None:
        """The database said this token, when asked at `asked_at`; ignored if it was forgotten since."""
        if asked_at <= self.epoch(namespace):
            return
        known = self._of(namespace)
        until = asked_at + self.seconds
        if until >= known.until:
            known.token, known.until = token, until

    def forget(self, namespace: str) -> None:
        """The token has changed, or may have."""
        known = self._of(namespace)
        known.token, known.until, known.not_before = None, 0.0, self.clock()

    def forget_all(self) -> None:
        """All tokens may have changed."""
        self._known.clear()
        self._not_before = self.clock()

    def _of(self, namespace: str) -> _Known:
        if namespace not in self._known:
            if len(self._known) >= _MOST_NAMESPACES:
                self.forget_all()
            self._known[namespace] = _Known()
        return self._known[namespace]
