"""What object stores say about artifacts: whether they are there, how large, and with which content.

Nothing is ever read but names, sizes and ETags, and nothing is written. A store is configured for
each bucket, with credentials of its own from the environment, as `ENDPOINT/BUCKET=URL`.
"""

import asyncio
import configparser
import hashlib
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec
import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from memopod.steps.argo import Step
from memopod.steps.locations import Location
from memopod.steps.outputs import OutputArtifact

if TYPE_CHECKING:
    from obstore import ObjectMeta  # a type only: not there at run time

_MD5 = re.compile(r"[0-9a-f]{32}")
"""An ETag that is the MD5 of an object's content. That of a multipart upload ends in `-<parts>`, that
of obstore's local folders is `<inode>-<mtime>-<size>`: both say nothing about content."""

ANY_BUCKET = "*"
_REMOTE = {"s3", "s3a", "gs", "az", "azure", "abfs", "abfss"}
_OPTIONS = {"endpoint", "region", "skip_signature", "virtual_hosted_style_request"}


class ArtifactStoreUnavailable(Exception):
    """The object store cannot be asked: no answer in time, refused, forbidden, not configured.

    It says nothing about whether the artifact is there.
    """


@dataclass(frozen=True, slots=True)
class ArtifactState:
    """An artifact as its store describes it now.

    `size` is in bytes, for a folder the sum. `etag` changes with every write; for a folder it is a
    digest over the names, sizes and ETags of all that is in it. `content` is the same for equal
    content wherever it is (`md5:<hex>` of an object, `sha256:<hex>` of a folder), None where the
    store does not tell. `modified` is when it was last written, by the store's clock.
    """

    size: int
    etag: str | None
    content: str | None
    modified: datetime


class Artifacts:
    """The object stores that this server may look into, by endpoint and bucket."""

    def __init__(
        self,
        stores: Mapping[tuple[str, str], ObjectStore],
        *,
        call_timeout: float = 2.0,
        concurrency: int = 32,
        endpoints: Mapping[str, Mapping[str, str]] | None = None,
        slots: asyncio.Semaphore | None = None,
    ) -> None:
        """`endpoints` (name -> options) are those whose buckets a namespace's own credentials open."""
        self.stores = dict(stores)
        self.call_timeout = call_timeout
        self.endpoints = dict(endpoints or {})
        self.slots = slots or asyncio.Semaphore(concurrency)

    @classmethod
    def from_settings(
        cls, settings: Sequence[str], *, call_timeout: float = 2.0, concurrency: int = 32
    ) -> Self:
        """Configure stores from lines `ENDPOINT/BUCKET=URL`.

        ENDPOINT is as Argo has it (`minio.argo:9000`), empty for GCS. URL is where this server finds
        the bucket: `file:///DIR`, `s3://BUCKET?endpoint=http://HOST:PORT&region=R`, `gs://BUCKET` or
        `az://CONTAINER`. Credentials come from the environment, as the store's own tools read them.
        `ENDPOINT/*=s3://*?endpoint=...`: any bucket there, with the credentials of the step's namespace.
        `call_timeout` is in seconds, `concurrency` the number of questions asked at the same time.

        Raises ValueError for a line that is none, OSError for a folder that is not there.
        """
        stores: dict[tuple[str, str], ObjectStore] = {}
        endpoints: dict[str, dict[str, str]] = {}
        for line in settings:
            place, separator, url = line.partition("=")
            endpoint, _, bucket = place.rpartition("/")
            if not separator or not bucket or not url:
                raise ValueError(f"object store: expected ENDPOINT/BUCKET=URL, got {place!r}")
            if (endpoint, bucket) in stores or (bucket == ANY_BUCKET and endpoint in endpoints):
                raise ValueError(f"object store: {place!r} is given twice")
            if bucket == ANY_BUCKET:
                endpoints[endpoint] = _endpoint_options(place, url)
                continue
            stores[endpoint, bucket] = _open(place, url, call_timeout)
        return cls(stores, call_timeout=call_timeout, concurrency=concurrency, endpoints=endpoints)

    @property
    def configured(self) -> bool:
        """Whether there is any store to ask."""
        return bool(self.stores)

    async def within(self, step: Step) -> "Artifacts":
        """What may be asked on behalf of a step: these stores, whichever step it is."""
        del step
        return self

    def knows(self, location: Location) -> bool:
        """Whether the store of this location is configured."""
        return (location.endpoint, location.bucket) in self.stores

    async def describe(self, location: Location) -> ArtifactState | None:
        """The object at a location, or all that is in a folder; None if there is neither.

        Raises ArtifactStoreUnavailable if the store does not say so in time.
        """
        store = self.stores.get((location.endpoint, location.bucket))
        place = f"{location.endpoint}/{location.bucket}"
        if store is None:
            raise ArtifactStoreUnavailable(f"no object store is configured for {place}")
        if location.key.startswith("/") or "//" in location.key:
            raise ArtifactStoreUnavailable(f"a key in {place} has empty segments, which cannot be asked for")
        async with self._question(place):
            return await _describe(store, location.key)

    @asynccontextmanager
    async def _question(self, place: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.call_timeout), self.slots:
                yield
        except TimeoutError as error:
            raise ArtifactStoreUnavailable(f"{place}: no answer within {self.call_timeout:g} s") from error
        except (BaseError, OSError, ValueError) as error:
            # The store's own text repeats the request, which can be signed: only the cause has it.
            raise ArtifactStoreUnavailable(f"{place}: {type(error).__name__}") from error


def open_bucket(
    bucket: str, options: Mapping[str, str], credentials: Sequence[str], call_timeout: float
) -> ObjectStore:
    """An S3 bucket of an endpoint, with an access key's id and secret."""
    user, password = credentials
    keys = {"access_key_id": user, "secret_access_key": password}
    return _open_remote(f"s3://{bucket}", dict(options), call_timeout, keys)


def _endpoint_options(place: str, url: str) -> dict[str, str]:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "s3" or parts.netloc != ANY_BUCKET or "endpoint" not in options:
        raise ValueError(f"object store {place!r}: expected s3://*?endpoint=URL, got {parts.scheme}://")
    _check_options(options)
    return options


def unchanged(stored: OutputArtifact, state: ArtifactState | None) -> bool:
    """Whether an artifact is as it was recorded: the same size, and the same content or ETag.

    False for one that is gone, or was recorded without those.
    """
    if state is None or stored.size is None or stored.size != state.size:
        return False
    if stored.digest is not None and state.content is not None:
        return stored.digest == state.content
    return stored.etag is not None and stored.etag == state.etag


def _open(place: str, url: str, call_timeout: float) -> ObjectStore:
    parts = urlsplit(url)
    try:
        if parts.scheme == "file" and not parts.netloc:
            return _open_folder(place, url)
        if parts.scheme in _REMOTE and parts.netloc:
            return _open_remote(parts._replace(query="").geturl(), dict(parse_qsl(parts.query)), call_timeout)
    except (BaseError, ValueError) as error:
        raise ValueError(f"object store {place!r}: {str(error).partition(chr(10))[0]}") from error
    raise ValueError(
        f"object store {place!r}: expected file:///DIR, s3://BUCKET, gs://BUCKET or az://CONTAINER, "
        f"got the scheme {parts.scheme!r}"
    )


def _open_folder(place: str, url: str) -> ObjectStore:
    try:
        return LocalStore.from_url(url)
    except BaseError as error:
        raise FileNotFoundError(f"object store {place!r}: there is no folder {urlsplit(url).path}") from error


def _check_options(options: Mapping[str, str]) -> None:
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise ValueError(f"expected options among {', '.join(sorted(_OPTIONS))}, got {', '.join(unknown)}")


def _open_remote(
    url: str, options: Mapping[str, str], call_timeout: float, credentials: Mapping[str, str] | None = None
) -> ObjectStore:
    _check_options(options)
    # Types of the options differ by store, and obstore reads the values from text.
    config: Any = {**options, **(credentials or _credentials_of_file(url))}
    deadline = timedelta(seconds=call_timeout)
    return from_url(
        url,
        config=config,
        client_options={
            "timeout": deadline,
            "connect_timeout": deadline,
            "allow_http": options.get("endpoint", "").startswith("http://"),
        },
        retry_config={"max_retries": 1, "retry_timeout": deadline},
    )


def _credentials_of_file(url: str) -> Mapping[str, str]:
    """The access key in the file that AWS_SHARED_CREDENTIALS_FILE names, which obstore does not read.

    None of it if the environment has a key itself. Raises ValueError for a file without this profile.
    """
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if not path or os.environ.get("AWS_ACCESS_KEY_ID") or not url.startswith("s3"):
        return {}
    profile = os.environ.get("AWS_PROFILE", "default")
    try:
        file = configparser.RawConfigParser()
        file.read_string(Path(path).read_text("utf-8"))
        found = file[profile]
        names = ("access_key_id", "secret_access_key")
        return {name: found[f"aws_{name}"] for name in names}
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        # The parser's own text repeats lines of the file.
        raise ValueError(
            f"AWS_SHARED_CREDENTIALS_FILE: expected aws_access_key_id and aws_secret_access_key below "
            f"[{profile}] in {path}, got {type(error).__name__}"
        ) from None


async def _describe(store: ObjectStore, key: str) -> ArtifactState | None:
    if not key.endswith("/"):
        try:
            found = await obstore.head_async(store, key)
        except FileNotFoundError:
            pass
        else:
            etag = _etag(found["e_tag"])
            return ArtifactState(found["size"], etag, _content(etag), found["last_modified"])
    members = await _members(store, key.rstrip("/") + "/")
    return _folder(key.rstrip("/") + "/", members) if members else None


async def _members(store: ObjectStore, prefix: str) -> "list[ObjectMeta]":
    """Everything below a prefix that ends in `/`, sorted by path."""
    if _is_gone(store):
        raise NotADirectoryError("the bucket's folder is gone")
    try:
        members = [member async for batch in obstore.list(store, prefix=prefix) for member in batch]
    except FileNotFoundError as error:
        raise NotADirectoryError("the bucket does not exist") from error
    return sorted(members, key=lambda member: member["path"])


def _is_gone(store: ObjectStore) -> bool:
    """Obstore lists a bucket's folder that vanished as an empty one."""
    return isinstance(store, LocalStore) and store.prefix is not None and not Path(store.prefix).is_dir()


def _folder(prefix: str, members: "Sequence[ObjectMeta]") -> ArtifactState:
    size = sum(member["size"] for member in members)
    modified = max(member["last_modified"] for member in members)
    etags = [_etag(member["e_tag"]) for member in members]
    if None in etags:
        return ArtifactState(size, None, None, modified)
    named = [
        (member["path"].removeprefix(prefix), member["size"], etag)
        for member, etag in zip(members, etags, strict=True)
    ]
    digest = "sha256:" + hashlib.sha256(msgspec.json.encode(named)).hexdigest()
    told = all(_content(etag) for etag in etags)
    return ArtifactState(size, digest, digest if told else None, modified)


def _etag(told: str | None) -> str | None:
    return told.strip('"') if told else None


def _content(etag: str | None) -> str | None:
    return f"md5:{etag}" if etag and _MD5.fullmatch(etag) else None
