"""Objects of the cluster kept for a while: those that wait for their turn are packed, since a Pod takes 2 KB
then, not the 20 KB that it fills decoded. Most have their turn at once, and are never packed.
"""

import zlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

_ENTRY: Final = 300
"""Bytes that an entry takes besides its text."""
_DECODED: Final = 8_000
"""Bytes that an object takes which is not packed, roughly."""
_MOST_DECODED: Final = 2_500
"""Objects: two pages of Pods with their nodes, Workflows and results."""


class Bodies:
    """At most `limit` bytes; beyond that the oldest go. What is gone is for the caller to get elsewhere."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._decoded: OrderedDict[Hashable, Mapping[str, Any]] = OrderedDict()
        self._most_decoded = min(_MOST_DECODED, limit // _DECODED)
        self._packed: OrderedDict[Hashable, bytes] = OrderedDict()
        self._packed_size = 0

    def __len__(self) -> int:
        return len(self._decoded) + len(self._packed)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._decoded or key in self._packed

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._packed_size + len(self._decoded) * _DECODED

    def put(self, key: Hashable, body: Mapping[str, Any]) -> int:
        """Keep a body in place of an earlier one, and leave it as it is; how many others had to go."""
        self.drop(key)
        self._decoded[key] = body
        if len(self._decoded) <= self._most_decoded:
            return 0
        oldest, body = self._decoded.popitem(last=False)
        return self.put_packed(oldest, _pack(body))

    def get(self, key: Hashable) -> Any | None:
        """The body, None if it is not here (any more). Others may get the same: it is not to be changed."""
        body = self._decoded.get(key)
        if body is not None:
            return body
        packed = self._packed.get(key)
        return None if packed is None else _unpack(packed)

    def drop(self, key: Hashable) -> None:
        """Forget a body."""
        self._decoded.pop(key, None)
        packed = self._packed.pop(key, None)
        if packed is not None:
            self._packed_size -= len(packed) + _ENTRY

    def move(self, key: Hashable, other: "Bodies") -> int:
        """Hand a body over to another keeper; how many others had to go there."""
        body, packed = self._decoded.get(key), self._packed.get(key)
        self.drop(key)
        if packed is not None:
            return other.put_packed(key, packed)
        return 0 if body is None else other.put(key, body)

    def put_packed(self, key: Hashable, packed: bytes) -> int:
        """The same for a body that another keeper packed."""
        self.drop(key)
        self._packed[key] = packed
        self._packed_size += len(packed) + _ENTRY
        dropped = 0
        while self.size > self._limit and len(self._packed) > 1:
            self.drop(next(iter(self._packed)))
            dropped += 1
        return dropped


def _pack(body: Mapping[str, Any]) -> bytes:
    return zlib.compress(msgspec.json.encode(body), 1)


@lru_cache(maxsize=16)
def _unpack(packed: bytes) -> Any:
    """The steps of a workflow have their turns side by side, and share it."""
    return msgspec.json.decode(zlib.decompress(packed))
