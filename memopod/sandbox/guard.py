"""Runs one program and leaves nothing of it behind: `python -I -S guard.py PARENT COMMAND...`.

A program started this way ends with the process PARENT that started the guard, however that one ends
(SIGKILL included), and when it ends itself, everything that it started ends too, as with a
container's first process. SIGTERM and SIGINT are passed on to the program; SIGHUP ends all at once.
The guard's exit status is the program's, 128 + n if signal n ended it.

It is a program of its own, of the standard library alone, since a process can neither be asked for
this after it has started nor be trusted to do it itself. Linux only (prctl).
"""

import contextlib
import ctypes
import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CANNOT_START = 127

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _start(command: list[str]) -> int:
    """Start the program in its own session, no signal blocked or ignored; it is killed if the guard is."""
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:
            os.execvp(command[0], command)  # noqa: S606 - running the given program is the purpose
    except OSError as error:
        os.write(2, f"cannot run {command[0]!r}: {error.strerror}\n".encode())
    os._exit(_CANNOT_START)


def _children() -> list[int]:
    pid = os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123 - pathlib costs start-up time
        return [int(word) for word in file.read().split()]


def _end_all() -> None:
    """Kill and reap until nothing is left; orphans of a killed child become children of the guard."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def main(parent: int, command: list[str]) -> int:
    """Run the command until it ends, or the process `parent` does."""
    child = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if child:
            # A handler may run when the child is reaped, and `child` still says otherwise.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL if number == signal.SIGHUP else number)

    # Blocked until the child is known, so that none of them is lost.
    handlers = {signal.SIGTERM: pass_on, signal.SIGINT: pass_on, signal.SIGHUP: pass_on}
    signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    if os.getppid() != parent:
        return 128 + signal.SIGHUP
    child = _start(command)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    child = 0
    _end_all()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
