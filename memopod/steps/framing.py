"""Bytes that cannot be read in two ways: the ground under every digest."""

import json
from typing import Any


def frame(*parts: str | bytes) -> bytes:
    """Join parts so that different lists of parts never give the same bytes: each after its length."""
    # Lone surrogates occur in JSON (`"\\ud800"`) and must not be the reason of a crash.
    texts = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts]
    return b"".join([b"%d:%b" % (len(text), text) for text in texts])


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical(value: Any) -> bytes:
    """JSON text of a value: keys sorted, no spaces. Equal values give equal bytes, and no others do."""
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")
