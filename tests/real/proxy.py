"""A proxy between memopod's services and the API server, which records and, where told, misbehaves.

proxy.rule(POST_RESULT, answer(500))        every such request is answered so, and not passed on
proxy.rule(POST_RESULT, lose_answer)        passed on; the caller's connection is cut before the answer
proxy.rule(anything, hang, times=3)         the first three get no answer at all
proxy.cut_watches()                         all open watches end as a broken connection
"""

import asyncio
import re
import ssl
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

_HOP_HEADERS = ("transfer-encoding", "connection", "content-length", "content-encoding", "keep-alive", "host")
_PATH = re.compile(
    r"/apis?/(?:(?P<group>[^/]+\.[^/]+|apps)/)?v[0-9a-z]+(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<subresource>[a-z]+))?)?$"
)
_REASONS = {
    403: "Forbidden", 409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError",
    503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Request:
    """One request in the words of RBAC. `status` is 0 for one that was never answered."""

    verb: str
    resource: str
    name: str = ""
    status: int = 0
    user_agent: str = ""


def parse(request):
    found = _PATH.match(request.path)
    if not found:
        return Request(request.method.lower(), request.path)
    parts = found.groupdict()
    resource = parts["resource"] + (f"/{parts['subresource']}" if parts["subresource"] else "")
    verb = _VERBS.get(request.method) or ("get" if parts["name"] else "list")
    if request.query.get("watch"):
        verb = "watch"
    return Request(verb, resource, parts["name"] or "", user_agent=request.headers.get("User-Agent", ""))


def answer(status):
    """Answer with an error of the API server's."""

    async def act(_proxy, _incoming):
        body = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
            "reason": _REASONS.get(status, "Unknown"), "message": "as the test wants it",
        }  # fmt: skip
        headers = {"Retry-After": "1"} if status in (429, 503) else {}
        return web.json_response(body, status=status, headers=headers)

    return act


async def hang(_proxy, _incoming):
    """No answer, ever: the connection stays open."""
    await asyncio.Event().wait()


async def cut(_proxy, incoming):
    """The connection breaks, and the request is not passed on."""
    incoming.transport.abort()
    return web.Response()


async def lose_answer(proxy, incoming):
    """What was asked is done, and the caller never hears of it."""
    async with proxy.forward(incoming, await incoming.read()) as response:
        await response.read()
    incoming.transport.abort()
    return web.Response()


def late(seconds):
    """Passed on, but only after so many seconds."""

    async def act(proxy, incoming):
        await asyncio.sleep(seconds)
        return await proxy.pass_on(incoming)

    return act


@dataclass
class Proxy:
    """Made by `running`; `url` stands in the place of the API server's."""

    upstream: str
    session: aiohttp.ClientSession
    port: int = 0
    seen: list = field(default_factory=list)
    served: Counter = field(default_factory=Counter)
    _rules: list = field(default_factory=list)
    _watches: set = field(default_factory=set)

    @property
    def url(self):
        return f"{self.upstream.partition('://')[0]}://127.0.0.1:{self.port}"

    @classmethod
    @asynccontextmanager
    async def running(cls, upstream, certificate=None):
        """Before `upstream` (a URL); with `certificate` (certificate, key) it speaks TLS itself."""
        context = None
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as session:
            proxy = cls(upstream, session)
            app = web.Application(client_max_size=64 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", proxy._serve)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
            proxy.port = runner.addresses[0][1]
            try:
                yield proxy
            finally:
                await runner.cleanup()

    def rule(self, matches, act, *, times=None):
        """Act on requests for which `matches(request)` is true; the newest rule counts first."""
        entry = [matches, act, times]
        self._rules.insert(0, entry)
        return entry

    def heal(self):
        """Everything is passed on again."""
        self._rules.clear()

    def cut_watches(self):
        """Break all watches that are open; returns how many."""
        watches = list(self._watches)
        for transport in watches:
            transport.abort()
        return len(watches)

    async def _serve(self, incoming):
        request = parse(incoming)
        for rule in self._rules:
            matches, act, times = rule
            if times != 0 and matches(request):
                rule[2] = None if times is None else times - 1
                self.served[request.verb, request.resource] += 1
                return await act(self, incoming)
        return await self.pass_on(incoming)

    def forward(self, incoming, body):
        headers = {k: v for k, v in incoming.headers.items() if k.lower() not in _HOP_HEADERS}
        return self.session.request(
            incoming.method, self.upstream + incoming.raw_path, headers=headers, data=body or None
        )

    async def pass_on(self, incoming):
        request = parse(incoming)
        async with self.forward(incoming, await incoming.read()) as response:
            self.seen.append(
                Request(request.verb, request.resource, request.name, response.status, request.user_agent)
            )
            headers = {k: v for k, v in response.headers.items() if k.lower() not in _HOP_HEADERS}
            if "Content-Encoding" in response.headers:
                headers["Content-Encoding"] = response.headers["Content-Encoding"]
            if incoming.method == "HEAD":
                return await _head(incoming, response, headers)
            if request.verb != "watch" or response.status != 200:
                return web.Response(status=response.status, headers=headers, body=await response.read())
            streamed = web.StreamResponse(status=200, headers=headers)
            self._watches.add(incoming.transport)
            try:
                await streamed.prepare(incoming)
                async for chunk in response.content.iter_any():
                    await streamed.write(chunk)
            except (ConnectionError, aiohttp.ClientError):
                # Whoever watches has gone, or was cut off.
                return streamed
            finally:
                self._watches.discard(incoming.transport)
            return streamed


async def _head(incoming, response, headers):
    """An answer that tells the length of a body which does not follow."""
    told = web.StreamResponse(status=response.status, headers=headers)
    told.content_length = int(response.headers.get("Content-Length", 0))
    await told.prepare(incoming)
    await told.write_eof()
    return told


def before_api_server(plane):
    """A proxy before the API server of a `plane`, with its certificate."""
    tls = plane.folder / "tls"
    return Proxy.running(f"https://127.0.0.1:{plane.port}", (tls / "apiserver.crt", tls / "apiserver.key"))


def matching(*verbs, resource=None):
    """Requests of these verbs (all, if none is given) for a resource (`pods`, `pods/status`; all)."""

    def matches(request):
        return (not verbs or request.verb in verbs) and (resource is None or request.resource == resource)

    return matches
