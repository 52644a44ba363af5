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


class Bodies:
    """At most `limit` bytes; beyond that the oldest go. What is gone is for the caller to get elsewhere."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._decoded: OrderedDict[Hashable, tuple[Mapping[str, Any], int]] = OrderedDict()
        self._decoded_size = 0
        self._packed: OrderedDict[Hashable, bytes] = OrderedDict()
        self._packed_size = 0

    def __len__(self) -> int:
        return len(self._decoded) + len(self._packed)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._decoded or key in self._packed

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._packed_size + self._decoded_size

    def put(self, key: Hashable, body: Mapping[str, Any], takes: int = 8_000) -> int:
        """Keep a body in place of an earlier one, and leave it as it is; how many others had to go.

        It `takes` so many bytes while it is not packed, roughly: the newest are not, in half of the room.
        """
        self.drop(key)
        self._decoded[key] = body, takes
        self._decoded_size += takes
        dropped = 0
        while self._decoded_size > self._limit // 2:
            oldest, (body, taken) = self._decoded.popitem(last=False)
            self._decoded_size -= taken
            dropped += self.put_packed(oldest, _pack(body))
        return dropped

    def get(self, key: Hashable) -> Any | None:
        """The body, None if it is not here (any more). Others may get the same: it is not to be changed."""
        decoded = self._decoded.get(key)
        if decoded is not None:
            return decoded[0]
        packed = self._packed.get(key)
        return None if packed is None else _unpack(packed)

    def drop(self, key: Hashable) -> None:
        """Forget a body."""
        decoded = self._decoded.pop(key, None)
        if decoded is not None:
            self._decoded_size -= decoded[1]
        packed = self._packed.pop(key, None)
        if packed is not None:
            self._packed_size -= len(packed) + _ENTRY

    def move(self, key: Hashable, other: "Bodies") -> int:
        """Hand a body over to another keeper; how many others had to go there."""
        decoded, packed = self._decoded.get(key), self._packed.get(key)
        self.drop(key)
        if packed is not None:
            return other.put_packed(key, packed)
        return 0 if decoded is None else other.put(key, *decoded)

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
