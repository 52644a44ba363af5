"""One worker process: an open store of the core, answering one call after the other.

Run as `python -m metadata_store.worker FD PARENT_PID`. It ends when the socket is closed, and is killed
by the kernel when its parent dies, even in the middle of a query.
"""

import ctypes
import io
import os
import signal
import socket
import sys
from typing import BinaryIO

from metadata_store.compose import answer
from metadata_store.core import CannotOpenStore, Core
from metadata_store.frames import ANSWER, PAIR, Answer

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_INTERNAL = 13
_BUFFER = 1 << 16  # bytes


class _Closed(Exception):
    """The server closed the socket: nothing more to do."""


def main(argv: list[str] | None = None) -> int:
    """Open the store that the first frame describes and answer calls until the socket is closed."""
    descriptor, parent = (sys.argv[1:] if argv is None else argv)[:2]
    _die_with(int(parent))
    # The server ends its workers by closing their sockets, after the calls under way; a signal meant
    # for the whole process group must not cut those off.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Descriptor 2 is the core's, which prints what belongs into no log; ours is another one.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with socket.socket(fileno=int(descriptor)) as connection:
        try:
            _serve(connection)
        except (_Closed, ConnectionError):
            return 0
    return 1


def _serve(connection: socket.socket) -> None:
    stream = io.BufferedReader(socket.SocketIO(connection, "r"), _BUFFER)
    try:
        core = Core(*_receive_pair(stream))
    except CannotOpenStore as trouble:
        _send(connection, Answer(_INTERNAL, str(trouble).encode(), b""))
        return
    _send(connection, Answer(0, b"", b""))
    while True:
        name, request = _receive_pair(stream)
        _send(connection, answer(core.call, name.decode(), request))


def _die_with(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(1)


def _send(connection: socket.socket, answer: Answer) -> None:
    head = ANSWER.pack(answer.code, len(answer.error), len(answer.response)) + answer.error
    if len(answer.response) < _BUFFER:
        connection.sendall(head + answer.response)
        return
    connection.sendall(head)
    connection.sendall(answer.response)


def _receive_pair(stream: BinaryIO) -> tuple[bytes, bytes]:
    """One frame; small ones come several in one system call."""
    first, second = PAIR.unpack(_receive(stream, PAIR.size))
    return _receive(stream, first), _receive(stream, second)


def _receive(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise _Closed
    return data


if __name__ == "__main__":
    sys.exit(main())
