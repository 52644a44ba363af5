"""A copy of a collection that follows the API server: list once, then watch for ever.

The watch goes on from the last version seen (bookmarks keep that version young), so a cut connection
costs neither a list nor an event. Only when the server no longer keeps that version (410) is the
collection listed again, and compared with what is known. Events of one object come in order.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any

import structlog

from memopod.kube.backoff import Backoff
from memopod.kube.client import Client
from memopod.kube.errors import ApiError, Gone
from memopod.kube.resources import Resource

Object = dict[str, Any]
Key = tuple[str, str]
Handler = Callable[[str, Object], None]

_WATCH_SECONDS = 60.0
"""How long one watch lasts. Short, since a server that hangs is noticed only at its end."""
_STEADY = 1.0
"""Seconds a watch must last for its end not to count as a failure."""


class Informer:
    """Keeps `objects` equal to a collection and tells of each change.

    `on_event("ADDED" | "MODIFIED" | "DELETED", object)` is called after `objects` was changed; an
    object seen again unchanged gives no event. What it raises ends `run`. `synced` is set when the
    first list is in `objects`, its events delivered. `name` restricts it to one object.

    `keep` says what of an object stays in `objects`, for collections too large to be held; `identity`
    is enough to notice changes. A deletion that nobody saw happen then comes with no more than that.
    `pace` is awaited before each further page of a list, so that a slow reader is not overrun.
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
        keep: Callable[[Object], Object] | None = None,
        pace: Callable[[], Awaitable[None]] | None = None,
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
        self._pace = pace
        self._known: dict[Key, Object] = {}
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

    async def _changes(self) -> AsyncGenerator[tuple[str, Object] | ApiError, None]:
        """The changes until one watch ends; a failure comes last, as a value."""
        try:
            if self._version is None:
                version = ""
                listed: set[Key] = set()
                async with aclosing(self._client.pages(self._resource, **self._scope)) as pages:
                    async for page in pages:
                        if listed and self._pace is not None:
                            await self._pace()
                        for change in self._listed(page["items"], listed):
                            yield change
                        version = page["metadata"]["resourceVersion"]
                for known in [known for key, known in self._known.items() if key not in listed]:
                    yield "DELETED", known
                self._version = version
                self.synced.set()
            watch = self._client.watch(
                self._resource,
                **self._scope,
                resource_version=self._version or "",
                timeout_seconds=self._watch_seconds,
            )
            async with aclosing(watch) as events:
                async for event in events:
                    if event["type"] != "BOOKMARK":
                        for change in self._as_changes(event["type"], event["object"]):
                            yield change
                    self._version = event["object"]["metadata"]["resourceVersion"]
        except ApiError as error:
            yield error

    def _listed(self, items: list[Object], listed: set[Key]) -> Iterator[tuple[str, Object]]:
        """What happened to the objects of one page since they were last seen; notes that they are there."""
        for item in items:
            # Items of a list carry neither; those of a watch do.
            item.setdefault("kind", self._resource.kind)
            item.setdefault("apiVersion", self._resource.api_version)
            listed.add(_key(item))
            yield from self._as_changes("ADDED", item)

    def _as_changes(self, kind: str, item: Object) -> list[tuple[str, Object]]:
        known = self._known.get(_key(item))
        if kind == "DELETED":
            return [("DELETED", item)] if known is not None else []
        if known is None:
            return [("ADDED", item)]
        old, new = known["metadata"], item["metadata"]
        if old.get("uid") != new.get("uid"):
            return [("DELETED", known), ("ADDED", item)]
        return [] if old.get("resourceVersion") == new.get("resourceVersion") else [("MODIFIED", item)]

    def _apply(self, kind: str, item: Object) -> None:
        if kind == "DELETED":
            del self._known[_key(item)]
        else:
            self._known[_key(item)] = item if self._keep is None else self._keep(item)
        if self._on_event is not None:
            self._on_event(kind, item)


def identity(item: Object) -> Object:
    """Name, UID and version of an object, and nothing else: for an informer's `keep`."""
    metadata = item["metadata"]
    named = ("namespace", "name", "uid", "resourceVersion")
    return {"metadata": {field: metadata[field] for field in named if field in metadata}}


def _key(item: Object) -> Key:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
