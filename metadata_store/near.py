"""Light reads of SQLite, answered in the server's own process.

The core reads one type or one node by its name from SQLite in some 25 microseconds: handing the call to a
worker and its answer back costs five times as much. While it reads, the server does nothing else; so no other
call is answered here, none of another database, whose reads wait for a network, and none at all for a while
after one that took long (a slow disk, a file that another program keeps locked). What the core did not answer
well is asked again of a worker, which has the time for it, and so is a long request from the start.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from metadata_store.core import Core
from metadata_store.frames import Answer
from metadata_store.process import Opening

_KINDS: Final = ("Artifact", "Execution", "Context")
LIGHT: Final = frozenset(name for kind in _KINDS for name in (f"Get{kind}Type", f"Get{kind}ByTypeAndName"))
"""The RPCs that read one row, by an index, and what belongs to it."""

_LONGEST_REQUEST: Final = 4096  # bytes: some names; of a text of megabytes the core makes SQL for seconds
_LONG: Final = 0.05
_REST_SECONDS: Final = 30.0


class Near:
    """A store of the core in this process. Raises CannotOpenStore if it cannot be opened.

    As long as it is open, nothing else in this process may open and close SQLite's file: that would drop the
    locks which the core holds (a rule of POSIX).
    """

    def __init__(self, opening: Opening) -> None:
        self._rests_until = 0.0
        self._log, self._nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            with self._silent():
                self._core = Core(*opening)
        except BaseException:
            self._close_descriptors()
            raise

    def close(self) -> None:
        """Close the store; from then on all calls are left to the workers."""
        self._core.close()
        self._rests_until = float("inf")
        self._close_descriptors()

    def answer(self, rpc: str, request: bytes) -> Answer | None:
        """The answer to a light read; None where a worker must be asked."""
        if rpc not in LIGHT or len(request) > _LONGEST_REQUEST:
            return None
        started = time.monotonic()
        if started < self._rests_until:
            return None
        with self._silent():
            answer = self._core.once(rpc, request)
        took = time.monotonic() - started
        if took > _LONG:
            self._rests_until = started + took + _REST_SECONDS
            structlog.get_logger().warning("a light read took long", rpc=rpc, seconds=round(took, 3))
        return answer

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """Send nowhere what the core prints to descriptor 2, values among it; what gRPC and Python print
        there at any other time belongs into the log.
        """
        os.dup2(self._nowhere, 2)
        try:
            yield
        finally:
            os.dup2(self._log, 2)

    def _close_descriptors(self) -> None:
        os.close(self._log)
        os.close(self._nowhere)
