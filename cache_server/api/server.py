"""The HTTP server of the API: requests in, documents out."""

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.resources import files
from typing import Annotated, Any

import msgspec
import structlog
from aiohttp import web

from cache_server.api.authorization import DELETE, LIST, UPDATE, Authorizer, CannotTell, UnknownToken
from cache_server.entries import EntriesUnavailable, Entry
from cache_server.entries.catalog import Catalog, Filter
from cache_server.entries.document import entry_document, stats_document
from cache_server.entries.leases import LEASE_SECONDS
from cache_server.entries.retention import Limits, span
from memopod.steps.staleness import parse_duration

_log = structlog.get_logger()
_REQUEST_SECONDS = 30.0
_DRAIN_SECONDS = 5.0
_LARGEST_BODY = 64 * 1024
_MOST_ENTRIES = 500
_MOST_DAYS = 400
_MOST_FIELDS = 20
_ID = re.compile(r"[0-9a-f]{1,32}")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Name = Annotated[str, msgspec.Meta(max_length=4096)]


class Refused(Exception):
    """The request is answered with `status` and a message, which holds nothing of an entry."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Pin(msgspec.Struct, forbid_unknown_fields=True):
    pinned: bool


class _Invalidate(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    namespace: str | None = None
    id: str = ""
    where: list[Name] = msgspec.field(default_factory=list)
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""
    dry_run: bool = False


class _Gc(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    namespace: str | None = None
    age: str = ""
    idle: str = ""
    number: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] | None = None
    dry_run: bool = False


class EntriesApi:
    """Serves a catalog to those whom the authorizer lets in."""

    def __init__(self, catalog: Catalog, authorizer: Authorizer) -> None:
        self._catalog = catalog
        self._authorizer = authorizer
        self._runner: web.AppRunner | None = None
        self._description = (files("cache_server.api") / "openapi.json").read_bytes()

    def app(self) -> web.Application:
        """The application, for a server of any kind."""
        app = web.Application(middlewares=[_answering], client_max_size=_LARGEST_BODY)
        app.router.add_get("/openapi.json", self._describe)
        app.router.add_get("/v1/entries", self._list)
        app.router.add_get("/v1/entries/{id}", self._get)
        app.router.add_put("/v1/entries/{id}/pin", self._pin)
        app.router.add_post("/v1/invalidate", self._invalidate)
        app.router.add_post("/v1/gc", self._gc)
        app.router.add_get("/v1/stats", self._stats)
        return app

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """Listen, over TLS only, and return the port (a free one is chosen for 0)."""
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=_DRAIN_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=context).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening; requests under way are answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _authorize(self, request: web.Request, verb: str, namespace: str | None) -> bool:
        """Whether the request may; raises Refused unless its token is known."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Refused(401, "expected the header Authorization: Bearer TOKEN")
        if not token.isascii() or not token.isprintable():
            raise Refused(401, "the token is not known")
        try:
            return await self._authorizer.allows(token, verb, namespace)
        except UnknownToken:
            raise Refused(401, "the token is not known") from None
        except CannotTell as error:
            _log.warning("cannot tell who may use the API", cause=type(error.__cause__).__name__)
            raise Refused(503, "nobody could be asked whether the token may do this") from None

    async def _require(self, request: web.Request, verb: str, namespace: str | None) -> None:
        _check_namespace(namespace)
        if await self._authorize(request, verb, namespace):
            return
        if namespace is None:
            raise Refused(403, f"may not {verb} entries.memopod.io in all namespaces; name one")
        raise Refused(403, f"may not {verb} entries.memopod.io in the namespace {namespace}")

    async def _describe(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._description, content_type="application/json")

    async def _list(self, request: web.Request) -> web.Response:
        query = _query(request, {"namespace", "id", "where", "limit", "after"})
        namespace = query.get("namespace")
        await self._require(request, LIST, namespace)
        which = _filter(namespace, query.get("id", ""), request.query.getall("where", []))
        limit = _whole("limit", query.get("limit", "50"), _MOST_ENTRIES)
        try:
            page = await self._catalog.page(which, limit=limit, after=query.get("after"))
        except ValueError as error:
            raise Refused(400, f"after: {error}") from None
        return _json({"entries": [entry_document(e) for e in page.entries], "after": page.after})

    async def _get(self, request: web.Request) -> web.Response:
        return _json(entry_document(await self._entry(request, LIST)))

    async def _pin(self, request: web.Request) -> web.Response:
        body = await _body(request, _Pin)
        entry = await self._entry(request, UPDATE)
        if not await self._catalog.pin(entry.id, body.pinned):
            raise Refused(404, "there is no such entry")
        return _json({"id": entry.id, "pinned": body.pinned})

    async def _entry(self, request: web.Request, verb: str) -> Entry:
        """The entry that the path names. Whether it is absent or not theirs, nobody is told."""
        _query(request, set())
        absent = Refused(404, "there is no such entry, or it is in a namespace that is not yours")
        # The token first: who has none learns nothing, not even by the time that it takes.
        anywhere = await self._authorize(request, verb, None)
        entry_id = request.match_info["id"]
        if not re.fullmatch(r"[0-9a-f]{32}", entry_id):
            raise absent
        page = await self._catalog.page(Filter(id_prefix=entry_id), limit=1)
        if not page.entries:
            raise absent
        if not anywhere and not await self._authorize(request, verb, page.entries[0].namespace):
            raise absent
        return page.entries[0]

    async def _invalidate(self, request: web.Request) -> web.Response:
        body = await _body(request, _Invalidate)
        await self._require(request, DELETE, body.namespace)
        which = _filter(body.namespace, body.id, body.where)
        gone = await self._catalog.invalidate(which, dry_run=body.dry_run)
        if gone and not body.dry_run:
            _log.info("entries invalidated", number=gone, reason=body.reason)
            # From now on no look-up is answered with one of them, in no replica.
            await asyncio.sleep(LEASE_SECONDS)
        return _json({"invalidated": gone, "dry_run": body.dry_run})

    async def _gc(self, request: web.Request) -> web.Response:
        body = await _body(request, _Gc)
        await self._require(request, DELETE, body.namespace)
        limits = Limits(age=_duration("age", body.age), idle=_duration("idle", body.idle), number=body.number)
        deleted = await self._catalog.gc(limits, namespace=body.namespace, dry_run=body.dry_run)
        return _json({"deleted": dict(deleted), "dry_run": body.dry_run})

    async def _stats(self, request: web.Request) -> web.Response:
        query = _query(request, {"namespace", "days"})
        namespace = query.get("namespace")
        await self._require(request, LIST, namespace)
        days = _whole("days", query.get("days", "30"), _MOST_DAYS)
        stats = await self._catalog.stats(namespace, days=days)
        return _json({"days": days, "stats": [stats_document(each) for each in stats]})


@web.middleware
async def _answering(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure is an answer in JSON, without what was asked for and without a traceback."""
    try:
        async with asyncio.timeout(_REQUEST_SECONDS):
            return await handler(request)
    except Refused as error:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return _json({"error": str(error)}, status=error.status, headers=headers)
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _json({"error": error.reason}, status=error.status, headers=allow)
    except EntriesUnavailable as error:
        _log.warning("the API could not answer", cause=str(error))
        return _json({"error": "the database of entries did not answer"}, status=503)
    except TimeoutError:
        return _json({"error": f"no answer within {_REQUEST_SECONDS:g} s; ask for less"}, status=503)
    except Exception:  # noqa: BLE001 (logged with its traceback, and one request fails)
        _log.exception("the API failed", method=request.method)
        return _json({"error": "internal error; the log says how"}, status=500)


async def _body(request: web.Request, kind: type[msgspec.Struct]) -> Any:
    _query(request, set())
    if request.content_type != "application/json":
        raise Refused(415, "expected Content-Type: application/json")
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(400, f"body: {error}") from None


def _query(request: web.Request, known: set[str]) -> dict[str, str]:
    names = [name for name, _ in request.query.items()]
    unknown = sorted(set(names) - known)
    if unknown:
        raise Refused(400, f"unknown query parameter; known: {', '.join(sorted(known)) or 'none'}")
    repeated = [name for name in known - {"where"} if names.count(name) > 1]
    if repeated:
        raise Refused(400, f"{repeated[0]}: expected once")
    return dict(request.query)


def _filter(namespace: str | None, id_prefix: str, where: list[str]) -> Filter:
    if id_prefix and not _ID.fullmatch(id_prefix):
        raise Refused(400, "id: expected 1 to 32 hexadecimal digits, in lower case")
    if len(where) > _MOST_FIELDS:
        raise Refused(400, f"where: expected {_MOST_FIELDS} at most")
    if not all(map(_is_storable, where)):
        raise Refused(400, "where: expected text that a database can hold")
    try:
        return Filter.parse(where, namespace=namespace, id_prefix=id_prefix)
    except ValueError as error:
        raise Refused(400, f"where: {error}") from None


def _is_storable(text: str) -> bool:
    """PostgreSQL knows no NUL, and no database half of a character."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _check_namespace(namespace: str | None) -> None:
    if namespace is not None and not _NAMESPACE.fullmatch(namespace):
        raise Refused(400, "namespace: expected the name of one")


def _whole(name: str, text: str, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most:
        return int(text)
    raise Refused(400, f"{name}: expected a whole number from 1 to {most}")


def _duration(name: str, text: str) -> timedelta | None:
    if not text:
        return None
    seconds = parse_duration(text)
    if seconds is None or seconds < 0:
        raise Refused(400, f"{name}: expected an ISO 8601 duration such as P30D")
    return span(seconds)


def _json(document: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        text=json.dumps(document, ensure_ascii=False), status=status, headers=headers,
        content_type="application/json",
    )  # fmt: skip
