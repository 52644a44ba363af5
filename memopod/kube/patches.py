"""JSON patches (RFC 6902) that fit the object they are made for."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1024)
def escape(token: str) -> str:
    """A key as a token of a JSON pointer (RFC 6901): `a/b` becomes `a~1b`."""
    return token.replace("~", "~0").replace("/", "~1")


def set_metadata_ops(
    metadata: Mapping[str, Any],
    *,
    labels: Mapping[str, str | None] | None = None,
    annotations: Mapping[str, str | None] | None = None,
) -> list[dict[str, Any]]:
    """Operations that set single labels and annotations; the value None removes one.

    A map that is absent from `metadata` is created, since a patch into an absent parent is refused.
    Creating it would overwrite one that somebody else created meanwhile: then the resourceVersion of
    `metadata`, where it has one, is tested first (a mismatch is answered with 422).
    """
    operations: list[dict[str, Any]] = []
    creates = False
    for field, values in (("labels", labels or {}), ("annotations", annotations or {})):
        present = metadata.get(field)
        if present is None:
            fresh = {key: value for key, value in values.items() if value is not None}
            if fresh:
                operations.append({"op": "add", "path": f"/metadata/{field}", "value": fresh})
                creates = True
            continue
        for key, value in values.items():
            path = f"/metadata/{field}/{escape(key)}"
            if value is not None:
                operations.append({"op": "add", "path": path, "value": value})
            elif key in present:
                operations.append({"op": "remove", "path": path})
    if creates and metadata.get("resourceVersion"):
        version = metadata["resourceVersion"]
        operations.insert(0, {"op": "test", "path": "/metadata/resourceVersion", "value": version})
    return operations
