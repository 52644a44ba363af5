"""The layer in the process's own memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from cache_server.entries.entry import Entry
from cache_server.entries.layer import Place, Reading

_ENTRY_BYTES = 3000
"""What an entry needs in memory beside its outputs."""
_ABSENT_BYTES = 500
_LARGEST = 1 << 20
"""Bytes: an entry with more is not remembered."""


@dataclass(frozen=True, slots=True)
class _Kept:
    reading: Reading
    until: float
    size: int


class MemoryLayer:
    """The readings that were asked for last, within `most` and `most_bytes` (estimated).

    An entry is remembered for `seconds`, that there is none for `absent_seconds` only: while it is,
    an entry that another process has stored meanwhile is missed, which costs a run and no more.
    """

    name = "memory"

    def __init__(
        self, *, most: int = 10_000, most_bytes: int = 32 << 20, seconds: float = 60.0,
        absent_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._most = most
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._absent_seconds = absent_seconds
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    async def look(self, place: Place) -> Reading | None:
        """See `Layer.look`."""
        return self.recall(place)

    def recall(self, place: Place) -> Reading | None:
        """`look`, which waits for nobody."""
        where = place.namespace, place.key
        kept = self._kept.get(where)
        if kept is None or place.token is None:
            return None
        if kept.reading.token != place.token or self._clock() >= kept.until:
            self._drop(where)
            return None
        self._kept.move_to_end(where)
        return kept.reading

    async def keep(self, place: Place, reading: Reading) -> None:
        """See `Layer.keep`."""
        where = place.namespace, place.key
        self._drop(where)
        size = _size(reading.entry)
        if reading.token is None or size > _LARGEST:
            return
        seconds = self._absent_seconds if reading.entry is None else self._seconds
        self._kept[where] = _Kept(reading, self._clock() + seconds, size)
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.size

    def drop(self, namespace: str, key: str) -> None:
        """Forget what is remembered of one place."""
        self._drop((namespace, key))

    def __len__(self) -> int:
        return len(self._kept)

    def _drop(self, where: tuple[str, str]) -> None:
        kept = self._kept.pop(where, None)
        if kept is not None:
            self._bytes -= kept.size


def _size(entry: Entry | None) -> int:
    if entry is None:
        return _ABSENT_BYTES
    outputs = entry.outputs
    texts = [*outputs.parameters.values(), outputs.result or ""]
    return _ENTRY_BYTES + 2000 * len(outputs.artifacts) + 4 * sum(map(len, texts))
