"""HTTP: from a request to the registry or a watch, and back to JSON."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog
from aiohttp import web

from memopod.sandbox.apiserver import statuses
from memopod.sandbox.apiserver.admission import User
from memopod.sandbox.apiserver.authentication import Tokens
from memopod.sandbox.apiserver.catalog import Target, discovery, find
from memopod.sandbox.apiserver.registry import Deletion, Registry
from memopod.sandbox.apiserver.selectors import Matches, matcher
from memopod.sandbox.apiserver.storage import Storage
from memopod.sandbox.apiserver.watching import Watch, page, stream

_LARGEST_BODY = 3 * 1024 * 1024
"""Bytes of a request, as a real API server accepts."""
_PROBES = ("/healthz", "/readyz", "/livez")
_VERSION = "/version"
_WATCH_SECONDS = (1800.0, 3600.0)
"""How long a watch lasts that asks for no time."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Routes:
    """The HTTP side of the server. `bookmark_every` is in seconds."""

    def __init__(
        self, storage: Storage, registry: Registry, tokens: Tokens, *, bookmark_every: float
    ) -> None:
        self._storage = storage
        self._registry = registry
        self._tokens = tokens
        self._bookmark_every = bookmark_every
        self._stopping = asyncio.Event()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_LARGEST_BODY, middlewares=[_answer_refusals])
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    def stop_watches(self) -> None:
        """End the open watches, so that a shutdown need not wait for them."""
        self._stopping.set()
        self._storage.wake()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path in _PROBES:
            return web.Response(text="ok")
        document = discovery(request.path)
        if document is not None and request.path == _VERSION:
            return _json(document)
        user = self._tokens.user(request.headers.get("Authorization"))
        if document is not None:
            return _json(document)
        target = find(request.path)
        if target.name is None:
            return await self._collection(request, target, user)
        return await self._object(request, target)

    async def _collection(self, request: web.Request, target: Target, user: User) -> web.StreamResponse:
        if request.method == "POST":
            if target.served.resource.namespaced and target.namespace is None:
                raise statuses.not_allowed()
            item, warnings = await self._registry.create(
                target, await _body(request), user, dry_run=_dry_run(request.query)
            )
            answer = _json(item, status=201)
            for warning in warnings:
                answer.headers.add("Warning", f"299 - {msgspec.json.encode(warning).decode()}")
            return answer
        matches = _matches(request.query, target)
        if request.method == "GET" and request.query.get("watch", "").lower() in ("1", "true"):
            watch = _watch(request.query, target, matches, self._bookmark_every)
            return await stream(request, self._storage, watch, self._stopping)
        if request.method == "GET":
            return _json(self._list(request.query, target, matches))
        if request.method == "DELETE":
            deletion = _deletion(request.query, await _body(request, optional=True))
            removed = self._registry.delete_all(target.served.resource, matches, deletion)
            listed = page(
                self._storage,
                target.served,
                lambda _item: False,
                limit=0,
                token="",
                version=self._storage.version,
            )
            return _json({**listed, "items": removed})
        raise statuses.not_allowed()

    def _list(self, query: Mapping[str, str], target: Target, matches: Matches) -> dict[str, Any]:
        return page(
            self._storage,
            target.served,
            matches,
            limit=_number(query, "limit", 0),
            token=query.get("continue", ""),
            version=self._storage.version,
        )

    async def _object(self, request: web.Request, target: Target) -> web.Response:
        if request.method == "GET":
            return _json(self._registry.get(target))
        if request.method == "PUT":
            body = await _body(request)
            return _json(self._registry.replace(target, body, dry_run=_dry_run(request.query)))
        if request.method == "PATCH":
            body = await _body(request)
            dry_run = _dry_run(request.query)
            return _json(self._registry.patch(target, body, request.content_type, dry_run=dry_run))
        if request.method == "DELETE" and target.subresource is None:
            deletion = _deletion(request.query, await _body(request, optional=True))
            return _json(self._registry.delete(target, deletion))
        raise statuses.not_allowed()


@web.middleware
async def _answer_refusals(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except statuses.StatusError as error:
        return _json(error.body(), status=error.code)
    except web.HTTPRequestEntityTooLarge:
        message = f"Request entity too large: limit is {_LARGEST_BODY}"
        return _json(statuses.StatusError(413, "RequestEntityTooLarge", message).body(), status=413)
    except ConnectionResetError:
        # The client of a watch has left; nobody is there to answer to.
        raise
    except Exception as error:  # noqa: BLE001
        # A defect of ours: the client gets Kubernetes' answer for that, the log the traceback.
        structlog.get_logger().exception("request failed", method=request.method, path=request.path)
        refusal = statuses.internal(type(error).__name__)
        return _json(refusal.body(), status=refusal.code)


def _json(body: Mapping[str, Any], *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


async def _body(request: web.Request, *, optional: bool = False) -> Any:
    data = await request.read()
    if not data and optional:
        return {}
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise statuses.bad_request(f"the body of the request is not JSON: {error}") from error


def _matches(query: Mapping[str, str], target: Target) -> Matches:
    fields = query.get("fieldSelector", "")
    labels = query.get("labelSelector", "")
    return matcher(target.served.resource, labels=labels, fields=fields, namespace=target.namespace)


def _watch(query: Mapping[str, str], target: Target, matches: Matches, bookmark_every: float) -> Watch:
    if query.get("sendInitialEvents", "").lower() == "true":
        raise statuses.StatusError(
            422, "Invalid", "sendInitialEvents is forbidden for watch: list first, then watch"
        )
    asked = _number(query, "timeoutSeconds", 0)
    # Spreads the ends of many watches in time; guards no secret.
    timeout = float(asked) if asked else random.uniform(*_WATCH_SECONDS)  # noqa: S311
    version = _number(query, "resourceVersion", 0)
    return Watch(
        target.served,
        matches,
        version or None,
        bookmarks=query.get("allowWatchBookmarks", "").lower() in ("1", "true"),
        timeout=timeout,
        bookmark_every=bookmark_every,
    )


def _deletion(query: Mapping[str, str], options: Any) -> Deletion:
    if not isinstance(options, dict):
        raise statuses.bad_request("expected DeleteOptions as a JSON object")
    policy = query.get("propagationPolicy") or options.get("propagationPolicy")
    if policy == "Orphan" or options.get("orphanDependents"):
        raise statuses.bad_request("propagationPolicy Orphan is not supported in the sandbox")
    grace = options.get("gracePeriodSeconds")
    if "gracePeriodSeconds" in query:
        grace = _number(query, "gracePeriodSeconds", 0)
    preconditions = options.get("preconditions") or {}
    return Deletion(grace, preconditions.get("uid"), preconditions.get("resourceVersion"))


def _dry_run(query: Mapping[str, str]) -> bool:
    if query.get("dryRun") not in (None, "", "All"):
        raise statuses.bad_request("dryRun: expected All")
    return query.get("dryRun") == "All"


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name) or str(default)
    if not text.isascii() or not text.isdigit():
        raise statuses.bad_request(f"{name}: expected a number, got {text!r}")
    return int(text)
