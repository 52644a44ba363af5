"""Copies artifacts between a Pod's folder and the sandbox's buckets: folders too, or in an object store.

An artifact is one object, or all objects below `<key>/`: Argo's `archive: none`, the only kind that
the sandbox makes.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import aiohttp
import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from cache_server.artifacts import Artifacts
from memopod.sandbox.argo import ENDPOINT
from memopod.steps.locations import Location, resolve

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_OBJECTS = 100_000
_CALL_TIMEOUT = 30.0
"""Seconds of one request to an object store."""


class ArtifactError(ValueError):
    """An artifact cannot be fetched or kept."""


class Buckets:
    """The buckets of the sandbox's object store: folders below `root`, or else exactly `stores`."""

    def __init__(self, root: Path, stores: Mapping[tuple[str, str], ObjectStore] | None = None) -> None:
        self._root = root
        self._stores = stores

    @classmethod
    async def open(cls, root: Path, lines: Sequence[str]) -> Self:
        """From the kubelet's settings. A bucket of S3 is made if it is not there.

        Raises ValueError for a line that is none, OSError for a folder or a bucket that cannot be used.
        """
        if not lines:
            return cls(root)
        stores = Artifacts.from_settings(lines, call_timeout=_CALL_TIMEOUT).stores
        for store in stores.values():
            if isinstance(store, S3Store):
                await _make_bucket(store)
        return cls(root, stores)

    def place(self, artifact: Mapping[str, Any], archive: Mapping[str, Any] | None) -> Location:
        """Where an artifact of a template is. Raises ArtifactError for a place outside the sandbox."""
        name = artifact.get("name")
        location = resolve(artifact, archive)
        if location is None or location.kind != "s3" or location.endpoint != ENDPOINT:
            raise ArtifactError(
                f"artifact {name!r}: expected a place at s3 {ENDPOINT}, the sandbox's only object store"
            )
        if "none" not in (artifact.get("archive") or {}):
            raise ArtifactError(f"artifact {name!r}: the sandbox keeps artifacts as they are (archive: none)")
        return location

    async def fetch(self, location: Location, target: Path) -> None:
        """Copy an artifact to `target`, a file or a folder. Raises ArtifactError if it is not there."""
        store = self._store(location)
        try:
            if await _fetch_object(store, location.key, target):
                return
            # Not an object: it may be a folder of objects.
            folder = location.key + "/"
            keys = [meta["path"] async for page in obstore.list(store, folder) for meta in page]
            for key in keys:
                await _fetch_object(store, key, target / key.removeprefix(folder))
        except BaseError as error:
            raise ArtifactError(f"{location.uri} cannot be read: {type(error).__name__}") from error
        if not keys:
            raise ArtifactError(f"there is no artifact at {location.uri}")

    async def keep(self, source: Path, location: Location) -> None:
        """Copy a file or a folder to an artifact's place. Raises ArtifactError for an empty folder."""
        store = self._store(location)
        files = await asyncio.to_thread(_files, source)
        if not files:
            raise ArtifactError("the folder is empty, and object stores keep no empty folders")
        try:
            for file in files:
                # A single file is the object itself.
                below = "" if file == source else f"/{file.relative_to(source).as_posix()}"
                await obstore.put_async(store, location.key + below, file)
        except BaseError as error:
            raise ArtifactError(f"{location.uri} cannot be written: {type(error).__name__}") from error

    def _store(self, location: Location) -> ObjectStore:
        bucket = location.bucket
        if self._stores is not None:
            store = self._stores.get((location.endpoint, bucket))
            if store is None:
                raise ArtifactError(
                    f"the sandbox has no bucket {bucket!r}; its kubelet's --object-store names them"
                )
            return store
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            raise ArtifactError(f"{bucket!r} is no bucket's name")
        return LocalStore(self._root / bucket, mkdir=True)


async def _make_bucket(store: S3Store) -> None:
    """A PUT of the bucket itself makes it; obstore has no such call, but signs this request too."""
    url = await obstore.sign_async(store, "PUT", "", timedelta(seconds=_CALL_TIMEOUT))
    try:
        async with (
            asyncio.timeout(_CALL_TIMEOUT),
            aiohttp.ClientSession(trust_env=False) as session,
            session.put(url) as answer,
        ):
            if answer.status not in {200, 409}:  # 409: it is there already
                raise OSError(f"a bucket of the object store cannot be made: it answered {answer.status}")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"the object store cannot be asked for a bucket: {type(error).__name__}") from None


async def _fetch_object(store: ObjectStore, key: str, target: Path) -> bool:
    """Copy one object; says whether there is one."""
    try:
        found = await obstore.get_async(store, key)
    except FileNotFoundError:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        async for chunk in found.stream():
            await asyncio.to_thread(file.write, chunk)
    return True


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if len(files) > _MAX_OBJECTS:
        raise ArtifactError(f"the folder holds more than {_MAX_OBJECTS} files")
    return files
