"""A copy of a collection that follows the API server: list once, then watch for ever.

The watch goes on from the last version seen (bookmarks keep that version young), so a cut connection
costs neither a list nor an event. Only when the server no longer keeps that version (410) is the
collection listed again, and compared with what is known. Events of one object come in order.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any

import structlog

from memopod.kube.backoff import Backoff
from memopod.kube.client import Client
from memopod.kube.errors import ApiError, Gone
from memopod.kube.resources import Resource
from memopod.kube.traces import Traces

Object = dict[str, Any]
Key = tuple[str, str]
Handler = Callable[[str, Object], None]

Change = tuple[str, Key | bytes, Object | bytes]
"""ADDED, MODIFIED or DELETED, what, and the object or what is left of it."""

_NAME = 16
"""Bytes of a name's digest."""
_SECRET = os.urandom(16)
"""Names' digests differ in each process: nobody can put one of them into what is kept of another object."""
_DIGEST = 8
"""Bytes of a UID's and of a version's digest: only those of one name are ever compared."""
_WATCH_SECONDS = 60.0
"""How long one watch lasts. Short, since a server that hangs is noticed only at its end."""
_STEADY = 1.0
"""Seconds a watch must last for its end not to count as a failure."""


class Informer:
    """Keeps `objects` equal to a collection and tells of each change.

    `on_event("ADDED" | "MODIFIED" | "DELETED", object)` is called after `objects` was changed; an
    object seen again unchanged gives no event. What it raises ends `run`. `synced` is set when the
    first list is in `objects`, its events delivered. `name` restricts it to one object.

    A collection that is too large to be held is not: with `keep`, only digests of names, UIDs and versions
    stay, and the bytes that `keep` makes of an object. `on_lost` is called with those for an object whose
    deletion nobody saw; `objects` stays empty. Of one of which `keep` makes None nothing stays: it is ADDED
    whenever it is seen, and its deletion is not told. `shape` says which fields are decoded at all, see
    `Client.pages`. `pace` is awaited before each further page of a list, so that a slow reader is not
    overrun; a page has `page_size` objects, 500 by default.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        name: str | None = None,
        on_event: Handler | None = None,
        watch_seconds: float = _WATCH_SECONDS,
        keep: Callable[[Object], bytes | None] | None = None,
        on_lost: Callable[[bytes], None] | None = None,
        shape: type | None = None,
        pace: Callable[[], Awaitable[None]] | None = None,
        page_size: int | None = None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._scope: dict[str, Any] = {
            "namespace": namespace,
            "label_selector": label_selector,
            "name": name,
        }
        self._on_event = on_event
        self._watch_seconds = watch_seconds
        self._keep = keep
        self._on_lost = on_lost
        self._shape = shape
        self._pace = pace
        self._page_size = page_size
        self._known: dict[Key, Object] = {}
        self._traces = Traces(_NAME)
        self._version: str | None = None
        self._log = structlog.get_logger().bind(resource=resource.plural, namespace=namespace)
        self.objects: Mapping[Key, Object] = MappingProxyType(self._known)
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Follow the collection until cancelled; errors of the server are logged and tried again."""
        backoff = Backoff()
        while True:
            begun = time.monotonic()
            failure: ApiError | None = None
            async with aclosing(self._changes()) as changes:
                async for change in changes:
                    if isinstance(change, ApiError):
                        failure = change
                        break
                    # Outside the generator's own error handling: what a handler raises is its bug.
                    self._apply(*change)
                    backoff.reset()
            if failure is None and time.monotonic() - begun >= _STEADY:
                backoff.reset()
                continue
            if isinstance(failure, Gone):
                self._version = None
            if failure is not None:
                self._log.warning("watch interrupted", status=failure.status, error=str(failure))
            await asyncio.sleep(backoff.next())

    async def _changes(self) -> AsyncGenerator[Change | ApiError, None]:
        """The changes until one watch ends; a failure comes last, as a value."""
        try:
            if self._version is None:
                version = ""
                listed: set[Key | bytes] = set()
                listing = self._client.pages(
                    self._resource, **self._scope, shape=self._shape, page_size=self._page_size
                )
                async with aclosing(listing) as pages:
                    async for page in pages:
                        if listed and self._pace is not None:
                            await self._pace()
                        for change in self._listed(page["items"], listed):
                            yield change
                        version = page["metadata"]["resourceVersion"]
                for key in [key for key in self._keys() if key not in listed]:
                    known = self._find(key)
                    if known is not None:
                        yield "DELETED", key, known
                self._version = version
                self.synced.set()
            watch = self._client.watch(
                self._resource,
                **self._scope,
                resource_version=self._version or "",
                timeout_seconds=self._watch_seconds,
                shape=self._shape,
            )
            async with aclosing(watch) as events:
                async for event in events:
                    if event["type"] != "BOOKMARK":
                        for change in self._as_changes(event["type"], event["object"]):
                            yield change
                    self._version = event["object"]["metadata"]["resourceVersion"]
        except ApiError as error:
            yield error

    def _listed(self, items: Iterable[Object], listed: set[Key | bytes]) -> Iterator[Change]:
        """What happened to the objects of one page since they were last seen; notes that they are there."""
        for item in items:
            # Items of a list carry neither; those of a watch do.
            item.setdefault("kind", self._resource.kind)
            item.setdefault("apiVersion", self._resource.api_version)
            listed.add(self._key(item))
            yield from self._as_changes("ADDED", item)

    def _as_changes(self, kind: str, item: Object) -> list[Change]:
        key = self._key(item)
        known = self._find(key)
        if kind == "DELETED":
            return [("DELETED", key, item)] if known is not None else []
        if known is None:
            return [("ADDED", key, item)]
        old, new = self._identity(known), self._identity(item)
        if old[0] != new[0]:
            return [("DELETED", key, known), ("ADDED", key, item)]
        return [] if old == new else [("MODIFIED", key, item)]

    def _apply(self, kind: str, key: Key | bytes, item: Object | bytes) -> None:
        if kind == "DELETED":
            self._forget(key)
        elif not isinstance(item, bytes):
            self._remember(key, item)
        if isinstance(item, bytes):
            if self._on_lost is not None:
                self._on_lost(item[2 * _DIGEST :])
        elif self._on_event is not None:
            self._on_event(kind, item)

    def _remember(self, key: Key | bytes, item: Object) -> None:
        if not isinstance(key, bytes):
            self._known[key] = item
            return
        kept = self._keep(item) if self._keep is not None else None
        if kept is None:
            self._traces.pop(key)
        else:
            self._traces.put(key, b"".join((*self._identity(item), kept)))

    def _forget(self, key: Key | bytes) -> None:
        if isinstance(key, bytes):
            self._traces.pop(key)
        else:
            del self._known[key]

    def _keys(self) -> Iterable[Key | bytes]:
        return self._known if self._keep is None else self._traces

    def _find(self, key: Key | bytes) -> Object | bytes | None:
        """What is known of an object: itself, or its trace."""
        return self._traces.get(key) if isinstance(key, bytes) else self._known.get(key)

    def _key(self, item: Object) -> Key | bytes:
        metadata = item["metadata"]
        key = metadata.get("namespace", ""), metadata["name"]
        return key if self._keep is None else _digest("/".join(key), _NAME, _SECRET)

    def _identity(self, item: Object | bytes) -> tuple[Any, Any]:
        """UID and version of an object, as they are compared."""
        if isinstance(item, bytes):
            return item[:_DIGEST], item[_DIGEST : 2 * _DIGEST]
        uid, version = item["metadata"].get("uid"), item["metadata"].get("resourceVersion")
        return (uid, version) if self._keep is None else (_digest(str(uid)), _digest(str(version)))


def _digest(text: str, size: int = _DIGEST, key: bytes = b"") -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size, key=key).digest()
