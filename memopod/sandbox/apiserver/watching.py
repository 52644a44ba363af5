"""Lists and watches: what a client sees of a collection, now and from then on."""

import asyncio
import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from memopod.kube import Resource
from memopod.sandbox.apiserver.catalog import Served
from memopod.sandbox.apiserver.selectors import Matches
from memopod.sandbox.apiserver.statuses import bad_request, expired
from memopod.sandbox.apiserver.storage import Change, Expired, Object, Storage


@dataclass(frozen=True, slots=True)
class Watch:
    """One watch. `version` is None for "from the present state, which comes first"; times in seconds."""

    served: Served
    matches: Matches
    version: int | None
    bookmarks: bool
    timeout: float
    bookmark_every: float


def page(
    storage: Storage, served: Served, matches: Matches, *, limit: int, token: str, version: int
) -> Object:
    """A List object; `limit` 0 means all, `token` is that of the page before.

    Later pages carry the first page's version: whoever watches from it is told of what changed while
    the pages were read. Raises StatusError (410) once the changes since then are no longer kept.
    """
    after: list[str] = []
    if token:
        version, after = _read_token(token)
        try:
            storage.since(served.resource, version)
        except Expired as error:
            raise expired(
                "The provided continue parameter is too old to display a consistent list"
            ) from error
    items = [item for item in storage.items(served.resource) if _position(item) > after and matches(item)]
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if limit and len(items) > limit:
        metadata["remainingItemCount"] = len(items) - limit
        items = items[:limit]
        metadata["continue"] = _write_token(version, _position(items[-1]))
    if not served.custom:
        # As real lists of built-in kinds: the items' kind is the list's.
        items = [{k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in items]
    resource = served.resource
    return {
        "kind": f"{resource.kind}List",
        "apiVersion": resource.api_version,
        "metadata": metadata,
        "items": items,
    }


async def stream(
    request: web.Request, storage: Storage, watch: Watch, stopping: asyncio.Event
) -> web.StreamResponse:
    """Answer with events until the watch's time is over, the client leaves or the server stops."""
    resource = watch.served.resource
    position, first = _begin(storage, watch)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + watch.timeout
    if first:
        await response.write(b"".join(first))
    while not stopping.is_set():
        changed = storage.changed(resource)
        try:
            changes = storage.since(resource, position)
        except Expired as error:
            await response.write(_line("ERROR", expired(str(error)).body()))
            break
        position = storage.version
        lines = [line for change in changes for line in _events(change, watch.matches)]
        if lines:
            await response.write(b"".join(lines))
            # Writing may have waited: look again before sleeping.
            continue
        left = deadline - loop.time()
        if left <= 0:
            break
        try:
            await asyncio.wait_for(changed.wait(), min(left, watch.bookmark_every))
        except TimeoutError:
            if watch.bookmarks:
                await response.write(_bookmark(resource, position))
    await response.write_eof()
    return response


def _begin(storage: Storage, watch: Watch) -> tuple[int, list[bytes]]:
    """The version to go on from, and what to send first; raises StatusError (410)."""
    if watch.version is not None:
        try:
            storage.since(watch.served.resource, watch.version)
        except Expired as error:
            raise expired(str(error)) from error
        return watch.version, []
    present = [item for item in storage.items(watch.served.resource) if watch.matches(item)]
    return storage.version, [_line("ADDED", item) for item in present]


def _events(change: Change, matches: Matches) -> Iterator[bytes]:
    """What a change is to somebody who sees only what is selected."""
    was = change.before is not None and matches(change.before)
    if change.after is not None and matches(change.after):
        yield _line("MODIFIED" if was else "ADDED", change.after)
    elif was and change.before is not None:
        metadata = {**change.before["metadata"], "resourceVersion": str(change.version)}
        yield _line("DELETED", {**change.before, "metadata": metadata})


def _bookmark(resource: Resource, version: int) -> bytes:
    item = {
        "kind": resource.kind,
        "apiVersion": resource.api_version,
        "metadata": {"resourceVersion": str(version)},
    }
    return _line("BOOKMARK", item)


def _line(kind: str, item: Object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": item}) + b"\n"


def _position(item: Object) -> list[str]:
    metadata = item["metadata"]
    return [metadata.get("namespace") or "", metadata["name"]]


def _write_token(version: int, last: list[str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([version, last])).decode()


def _read_token(token: str) -> tuple[int, list[str]]:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token), type=tuple[int, list[str]])
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise bad_request("continue key is not valid") from error
