"""Where an artifact is: Argo's location fields, resolved to endpoint, bucket and key.

Argo keeps artifacts of its default repository "key-only", inputs and outputs alike:
`{"s3": {"key": ...}}`. Bucket and endpoint are then those of the template's `archiveLocation`
(seen with 3.4 - 4.1). An artifact of another store repeats its location in full.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {
    # kind: (field with the endpoint, with the bucket, with the key)
    "s3": ("endpoint", "bucket", "key"),
    "gcs": ("", "bucket", "key"),
    "oss": ("endpoint", "bucket", "key"),
    "azure": ("endpoint", "container", "blob"),
}
"""Kinds of location that an object store holds, by their name in Argo's API."""

_AWS = re.compile(r"^.*s3.*amazonaws\.com.*$")


@dataclass(frozen=True, slots=True)
class Location:
    """An object, or all objects below a key that is a folder's."""

    kind: str
    endpoint: str
    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """`s3://bucket/key` on AWS and `minio://bucket/key` elsewhere, as Kubeflow Pipelines v1 names
        artifacts; `gs://`, `oss://` and `azure://` for the other kinds.
        """
        if self.kind == "s3":
            scheme = "s3" if _AWS.match(self.endpoint) else "minio"
        else:
            scheme = {"gcs": "gs"}.get(self.kind, self.kind)
        return f"{scheme}://{self.bucket}/{self.key}"


def kind_of(artifact: Mapping[str, Any]) -> str | None:
    """Which of KINDS an artifact's location is of, None for another kind or none at all."""
    return next((kind for kind in KINDS if artifact.get(kind)), None)


def is_key_only(artifact: Mapping[str, Any]) -> bool:
    """Whether the location names a key and leaves the bucket to the template's `archiveLocation`."""
    kind = kind_of(artifact)
    return kind is not None and not artifact[kind].get(KINDS[kind][1])


def resolve(artifact: Mapping[str, Any], archive: Mapping[str, Any] | None) -> Location | None:
    """The place of an artifact, given the template's `archiveLocation`.

    None when there is no object to point at: no location, a kind that is no object store's (raw,
    git, http, ...), or a key-only location without an archive location of the same kind.
    """
    kind = kind_of(artifact)
    if kind is None:
        return None
    endpoint_field, bucket_field, key_field = KINDS[kind]
    own = artifact[kind]
    key = own.get(key_field)
    source = own if own.get(bucket_field) else (archive or {}).get(kind) or {}
    bucket = source.get(bucket_field)
    if not key or not bucket:
        return None
    return Location(kind, str(source.get(endpoint_field) or ""), str(bucket), str(key))
