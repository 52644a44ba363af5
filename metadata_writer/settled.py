"""Steps that are recorded as they were last seen: enough to notice that one has changed, 42 bytes for each.

Most steps of a cluster are such. Their names are not kept: a digest tells one from another.
"""

import hashlib
import struct
from typing import Final, NamedTuple

from memopod.kube import Traces

_MARK: Final = struct.Struct("<8sqB")
"""Digest of the Pod's UID, facts of Pod and node."""
NO_POD: Final = bytes(8)
WORKFLOW: Final = 16
"""Bytes of a step's token that are its Workflow's."""
TOKEN: Final = 24


def digest(text: str, size: int = 8) -> bytes:
    """A digest of `size` bytes: 16 tell all Workflows apart, 8 the nodes of one."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


class Mark(NamedTuple):
    """How a step was when it was recorded: `pod` is its UID's digest, or NO_POD."""

    pod: bytes
    pod_facts: int
    node_facts: int


class Settled:
    """By token: the digest of the Workflow's UID, and that of the node's id."""

    def __init__(self) -> None:
        self._marks = Traces(TOKEN)

    def __len__(self) -> int:
        return len(self._marks)

    def get(self, token: bytes) -> Mark | None:
        """How a step was, None for one that is not here."""
        return _unpack(self._marks.get(token))

    def put(self, token: bytes, mark: Mark) -> None:
        """Remember a step, in place of what was known of it."""
        self._marks.put(token, _MARK.pack(*mark))

    def pop(self, token: bytes) -> Mark | None:
        """Forget a step; how it was."""
        return _unpack(self._marks.pop(token))

    def close(self, workflow: bytes) -> None:
        """A Workflow is gone: only those of its steps stay whose Pods are there."""
        for token in self._marks.keys_of(workflow):
            mark = self.get(token)
            if mark is not None and mark.pod == NO_POD:
                self.pop(token)


def _unpack(packed: bytes | None) -> Mark | None:
    return None if packed is None else Mark(*_MARK.unpack(packed))
