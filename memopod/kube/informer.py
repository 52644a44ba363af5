"""A copy of a collection that follows the API server: list once, then watch for ever.

The watch goes on from the last version seen (bookmarks keep that version young), so a cut connection
costs neither a list nor an event. Only when the server no longer keeps that version (410) is the
collection listed again, and compared with what is known. Events of one object come in order.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
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
                listed = await self._client.list(self._resource, **self._scope)
                for change in self._difference(listed.get("items") or []):
                    yield change
                self._version = listed["metadata"]["resourceVersion"]
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

    def _difference(self, items: list[Object]) -> list[tuple[str, Object]]:
        """What happened between what is known and a fresh list."""
        for item in items:
            # Items of a list carry neither; those of a watch do.
            item.setdefault("kind", self._resource.kind)
            item.setdefault("apiVersion", self._resource.api_version)
        listed = {_key(item) for item in items}
        vanished = [("DELETED", known) for key, known in self._known.items() if key not in listed]
        return vanished + [change for item in items for change in self._as_changes("ADDED", item)]

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
            self._known[_key(item)] = item
        if self._on_event is not None:
            self._on_event(kind, item)


def _key(item: Object) -> Key:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
