"""Does the database answer? Asked every few seconds, through the same pool as every call."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import structlog
from ml_metadata.proto import metadata_store_service_pb2

from metadata_store.pool import NoWorker, Overloaded, Pool

_EVERY_SECONDS = 2.0
_PATIENCE_SECONDS = 10.0
_SILENCE_SECONDS = 30.0
_REQUEST: bytes = metadata_store_service_pb2.GetArtifactTypesByIDRequest(type_ids=[1]).SerializeToString()


class Gone(Exception):
    """The database's file is no longer the one that was opened."""


class Probe:
    """Knows whether the database answered when last asked.

    `path` is SQLite's file: once it is removed or replaced, the open stores would go on in a file that
    nobody can see any more, so the probe fails although they answer. A pool that is merely busy is no
    reason to fail: then the last answer stands.
    """

    def __init__(self, pool: Pool, path: str | None) -> None:
        self._pool = pool
        self._path = path
        self._file = _identity(path)

    def check_file(self) -> None:
        """Raise Gone unless SQLite's file is the one that was opened."""
        if self._path is not None and _identity(self._path) != self._file:
            raise Gone(
                f"the database file {self._path} was removed or replaced; put it back or restart the store"
            )

    async def run(self, changed: Callable[[bool], Awaitable[None]]) -> None:
        """Ask for ever, and report each answer."""
        said: str | None = None
        while True:
            trouble = await self._ask()
            if trouble is not None and trouble != said:
                structlog.get_logger().error("the database does not answer", error=trouble)
            elif trouble is None and said is not None:
                structlog.get_logger().info("the database answers again")
            said = trouble
            await changed(trouble is None)
            await asyncio.sleep(_EVERY_SECONDS)

    async def _ask(self) -> str | None:
        """What is wrong, or None."""
        try:
            self.check_file()
            answer = await self._pool.call("GetArtifactTypesByID", _REQUEST, _PATIENCE_SECONDS)
        except Gone as error:
            return str(error)
        except NoWorker as error:
            return str(error)
        except (Overloaded, TimeoutError):
            return None if self._busy() else f"no call was answered for {_SILENCE_SECONDS:.0f} s"
        return None if answer.code == 0 else answer.error.decode(errors="replace")

    def _busy(self) -> bool:
        """Whether other calls are answered, so that the database is there."""
        return time.monotonic() - self._pool.last_answer < _SILENCE_SECONDS


def _identity(path: str | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 (this runs before each call)
    except OSError:
        return None
    return status.st_dev, status.st_ino
