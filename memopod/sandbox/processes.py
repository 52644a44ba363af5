"""Starts programs below the guard, so that no process of the sandbox outlives it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from memopod.sandbox import guard

_GUARD = guard.__file__


class Process:
    """A running program and all that it starts. Made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: IO[bytes] | None = None,
    ) -> "Process":
        """Start a program, its standard output and error into `log`. Raises OSError if it cannot."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            _GUARD,
            str(os.getpid()),
            *command,
            env=env,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT if log is not None else None,
            start_new_session=True,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id of the guard; the program is its child."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the program has not been seen to end."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Exit status of the program, 128 + n if signal n ended it, -n if the guard was ended by it."""
        return await self._process.wait()

    async def stop(self, grace: float) -> int:
        """Ask the program to end (SIGTERM), and end it after `grace` seconds; 0 does so at once."""
        if grace > 0:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._process.wait(), grace)
        self._signal(signal.SIGHUP)
        try:
            return await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
