"""What is left of very many objects: a few bytes each, by a digest of what they are called.

A dict of small `bytes` takes 200 bytes for each of them besides their own; here it is one.
"""

from collections.abc import Iterator
from typing import Final

_BUCKETS: Final = 1 << 12
"""Few enough to be nothing, enough that one of them is short to search and to copy: 25 of 100,000 objects."""


class Traces:
    """Values of up to 255 bytes by keys of `key_size` bytes, which must be digests.

    The first two bytes of a key say where it is, so those that share a longer prefix are side by side. Keys
    are found by searching for their bytes, wherever they are. So no value may hold what could be a key: it
    is shorter than one, or nobody who has a say in values knows how keys are made.
    """

    def __init__(self, key_size: int) -> None:
        self._key_size = key_size
        self._buckets: list[bytes] = [b""] * _BUCKETS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        return key in self._buckets[_bucket(key)]

    def __iter__(self) -> Iterator[bytes]:
        for bucket in list(self._buckets):
            yield from self._keys(bucket)

    def get(self, key: bytes) -> bytes | None:
        """What is known, None if nothing is."""
        bucket = self._buckets[_bucket(key)]
        at = bucket.find(key)
        if at < 0:
            return None
        begin = at + self._key_size + 1
        return bucket[begin : begin + bucket[begin - 1]]

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value in place of an earlier one."""
        self.pop(key)
        self._buckets[_bucket(key)] += key + bytes((len(value),)) + value
        self._count += 1

    def pop(self, key: bytes) -> bytes | None:
        """Forget a key; what was known."""
        value = self.get(key)
        if value is None:
            return None
        number = _bucket(key)
        bucket = self._buckets[number]
        at = bucket.find(key)
        self._buckets[number] = bucket[:at] + bucket[at + self._key_size + 1 + len(value) :]
        self._count -= 1
        return value

    def keys_of(self, prefix: bytes) -> list[bytes]:
        """The keys that begin so; the prefix has two bytes or more."""
        return [key for key in self._keys(self._buckets[_bucket(prefix)]) if key.startswith(prefix)]

    def _keys(self, bucket: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(bucket):
            end = at + self._key_size
            yield bucket[at:end]
            at = end + 1 + bucket[end]


def _bucket(key: bytes) -> int:
    return (key[0] << 8 | key[1]) % _BUCKETS
