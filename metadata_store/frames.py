"""The frames on the socket between the server and a worker.

To the worker: the opening (connection and migration options), then calls; one at a time, each answered
before the next. From the worker: first the answer to the opening, then one answer per call. All lengths
are unsigned 32-bit in network order, more than any message that gRPC lets through.
"""

import struct
from typing import NamedTuple

PAIR = struct.Struct("!II")
"""Length of two byte strings that follow: (connection, migration) or (RPC name, request)."""

ANSWER = struct.Struct("!iII")
"""Status code (a gRPC code; 0 is success), length of the error message, length of the response."""


class Answer(NamedTuple):
    """What the core said to one call."""

    code: int
    error: bytes
    response: bytes


def pack_pair(first: bytes, second: bytes) -> tuple[bytes, bytes]:
    """A frame in two pieces, so that a large request is not copied."""
    return PAIR.pack(len(first), len(second)) + first, second
