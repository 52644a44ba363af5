"""Light reads of SQLite, answered in the server's own process.

The core reads one type or one node by its name from SQLite in some 25 microseconds: handing the call to a
worker and its answer back costs five times as much. While it reads, the server does nothing else; so no other
call is answered here, none of another database, whose reads wait for a network, and none at all for a while
after one that took long (a slow disk, a file that another program keeps locked). What the core did not answer
well is asked again of a worker, which has the time for it.
"""

import time
from typing import Final

import structlog

from metadata_store.core import Core
from metadata_store.frames import Answer
from metadata_store.process import Opening

_KINDS: Final = ("Artifact", "Execution", "Context")
LIGHT: Final = frozenset(name for kind in _KINDS for name in (f"Get{kind}Type", f"Get{kind}ByTypeAndName"))
"""The RPCs that read one row, by an index, and what belongs to it."""

_LONG: Final = 0.05
_REST_SECONDS: Final = 30.0


class Near:
    """A store of the core in this process. Raises CannotOpenStore if it cannot be opened.

    From then on descriptor 2 leads nowhere (`Core`): whoever makes one needs another for its own logs.
    """

    def __init__(self, opening: Opening) -> None:
        self._core = Core(*opening)
        self._rests_until = 0.0

    def answer(self, rpc: str, request: bytes) -> Answer | None:
        """The answer to a light read; None where a worker must be asked."""
        if rpc not in LIGHT:
            return None
        started = time.monotonic()
        if started < self._rests_until:
            return None
        answer = self._core.once(rpc, request)
        took = time.monotonic() - started
        if took > _LONG:
            self._rests_until = started + took + _REST_SECONDS
            structlog.get_logger().warning("a light read took long", rpc=rpc, seconds=round(took, 3))
        return answer
