"""Steps that are recorded as they were last seen: enough to notice that one has changed, 25 bytes for each.

Most steps of a cluster are such. Their names are not kept: a digest tells one from another.
"""

import hashlib
import struct
from typing import Final, NamedTuple

_RECORD: Final = struct.Struct("<8s8sqB")
"""Digests of node id and Pod UID, facts of Pod and node."""
NO_POD: Final = bytes(8)


def digest(text: str, size: int = 8) -> bytes:
    """A digest of `size` bytes: 16 tell all Workflows apart, 8 the nodes of one."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


class Mark(NamedTuple):
    """How a step was when it was recorded: `pod` is its UID's digest, or NO_POD."""

    pod: bytes
    pod_facts: int
    node_facts: int


class Settled:
    """By digest of the Workflow's UID and of the node's id. A Workflow's steps are one `bytes`."""

    def __init__(self) -> None:
        self._steps: dict[bytes, bytes] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, workflow: bytes, node: bytes) -> Mark | None:
        """How a step was, None for one that is not here."""
        packed = self._steps.get(workflow)
        at = -1 if packed is None else _find(packed, node)
        if packed is None or at < 0:
            return None
        return Mark(*_RECORD.unpack_from(packed, at)[1:])

    def put(self, workflow: bytes, node: bytes, mark: Mark) -> None:
        """Remember a step, in place of what was known of it."""
        self.pop(workflow, node)
        self._steps[workflow] = self._steps.get(workflow, b"") + _RECORD.pack(node, *mark)
        self._count += 1

    def pop(self, workflow: bytes, node: bytes) -> Mark | None:
        """Forget a step; how it was."""
        packed = self._steps.get(workflow)
        at = -1 if packed is None else _find(packed, node)
        if packed is None or at < 0:
            return None
        self._count -= 1
        self._keep(workflow, packed[:at] + packed[at + _RECORD.size :])
        return Mark(*_RECORD.unpack_from(packed, at)[1:])

    def close(self, workflow: bytes) -> None:
        """A Workflow is gone: only those of its steps stay whose Pods are there."""
        packed = self._steps.get(workflow, b"")
        records = [packed[at : at + _RECORD.size] for at in range(0, len(packed), _RECORD.size)]
        kept = [record for record in records if record[8:16] != NO_POD]
        self._count -= len(records) - len(kept)
        self._keep(workflow, b"".join(kept))

    def _keep(self, workflow: bytes, packed: bytes) -> None:
        if packed:
            self._steps[workflow] = packed
        else:
            self._steps.pop(workflow, None)


def _find(packed: bytes, node: bytes) -> int:
    at = packed.find(node)
    while at >= 0 and at % _RECORD.size:  # within another record
        at = packed.find(node, at + 1)
    return at
