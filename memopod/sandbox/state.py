"""The folder that holds everything a sandbox writes, and the file by which others find it."""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from memopod.sandbox.errors import SandboxError

DEFAULT = Path(".memopod/sandbox")
"""State folder unless told otherwise, below the folder one is in."""
_USABLE = re.compile(r"[A-Za-z0-9._+@/-]+")
_DESCRIPTION = "sandbox.json"


class State:
    """One sandbox's folder, locked while it is held. Made by `acquire`."""

    def __init__(self, root: Path, lock: IO[str]) -> None:
        self.root = root
        self._lock = lock

    @classmethod
    def acquire(cls, folder: Path) -> Self:
        """Take the folder for a sandbox, made if it is not there.

        Raises SandboxError if it cannot be written, is in use, or has a path that cannot be used.
        """
        root = folder.expanduser().absolute()
        if not _USABLE.fullmatch(str(root)):
            raise SandboxError(
                f"state folder {root}: expected a path of letters, digits and . _ + @ - only, since it "
                "becomes part of database addresses and of steps' commands; choose another with --state"
            )
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (root / "lock").open("a+")
        except OSError as error:
            raise SandboxError(
                f"state folder {root} cannot be written: {error.strerror}; choose another with --state"
            ) from error
        if not _lock(lock):
            lock.close()
            raise SandboxError(
                f"state folder {root} is in use by another sandbox; choose another with --state"
            )
        (root / _DESCRIPTION).unlink(missing_ok=True)
        return cls(root, lock)

    def release(self) -> None:
        """Let the folder go."""
        (self.root / _DESCRIPTION).unlink(missing_ok=True)
        self._lock.close()

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write what others need to find the services, whole or not at all."""
        path = self.root / _DESCRIPTION
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(description, indent=2) + "\n")
        beside.replace(path)

    def folder(self, name: str) -> Path:
        """A folder below the root, made if it is not there."""
        path = self.root / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path


def read_description(folder: Path) -> dict[str, Any]:
    """What the sandbox that runs in `folder` wrote. Raises SandboxError if none runs there."""
    root = folder.expanduser().absolute()
    advice = f"start one with: memopod sandbox up --state {folder}"
    try:
        with (root / "lock").open() as lock:
            if _lock(lock):
                raise SandboxError(f"no sandbox runs in {folder}; {advice}")
        description: dict[str, Any] = json.loads((root / _DESCRIPTION).read_text())
    except FileNotFoundError:
        raise SandboxError(f"no sandbox runs in {folder}, or it is still starting; {advice}") from None
    except OSError as error:
        raise SandboxError(f"state folder {folder} cannot be read: {error.strerror}") from error
    return description


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
