"""Objects of the cluster kept for a while, packed: a Pod takes 2 KB, not the 100 KB that it fills decoded."""

import zlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

_ENTRY = 300
"""Bytes that an entry takes besides its text."""


class Bodies:
    """At most `limit` bytes; beyond that the oldest go. What is gone is for the caller to get elsewhere."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._packed: OrderedDict[Hashable, bytes] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._packed

    def put(self, key: Hashable, body: Mapping[str, Any]) -> int:
        """Keep a body in place of an earlier one; how many others had to go."""
        return self.put_packed(key, zlib.compress(msgspec.json.encode(body), 1))

    def get(self, key: Hashable) -> Any | None:
        """The body, None if it is not here (any more). Others may get the same: it is not to be changed."""
        packed = self._packed.get(key)
        return None if packed is None else _unpack(packed)

    def drop(self, key: Hashable) -> None:
        """Forget a body."""
        packed = self._packed.pop(key, None)
        if packed is not None:
            self.size -= len(packed) + _ENTRY

    def move(self, key: Hashable, other: "Bodies") -> int:
        """Hand a body over to another keeper; how many others had to go there."""
        packed = self._packed.get(key)
        self.drop(key)
        return 0 if packed is None else other.put_packed(key, packed)

    def put_packed(self, key: Hashable, packed: bytes) -> int:
        """The same for a body that another keeper packed."""
        self.drop(key)
        self._packed[key] = packed
        self.size += len(packed) + _ENTRY
        dropped = 0
        while self.size > self._limit and len(self._packed) > 1:
            self.drop(next(iter(self._packed)))
            dropped += 1
        return dropped


@lru_cache(maxsize=16)
def _unpack(packed: bytes) -> Any:
    """The steps of a workflow have their turns side by side, and share it."""
    return msgspec.json.decode(zlib.decompress(packed))
