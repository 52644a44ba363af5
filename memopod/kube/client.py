"""Requests to the API server: raw JSON in and out.

Typed models of a Pod cost more than a millisecond each and drop fields they do not know; memopod
reads a few fields of many Pods. Configuration and credentials are those of the `kubernetes` package.
"""
# A `timeout` for one request is what a caller of an HTTP client looks for.
# ruff: noqa: ASYNC109

import asyncio
import io
import os
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import aiohttp
import msgspec

from memopod.kube import configuration as configurations
from memopod.kube.decoding import (
    Lines,
    cut_off,
    decode_json,
    decoder,
    event_of,
    objects,
    split_page,
    status_of,
)
from memopod.kube.errors import Gone, Unavailable, from_status
from memopod.kube.resources import Resource

_PAGE = 500
"""Objects for each page of a list, as client-go asks for."""
_WATCH_GRACE = 10.0
"""Seconds that a watch may stay open after the server should have ended it."""
_CONNECT_TIMEOUT = 5.0
"""Seconds to establish a connection, within each request's own time."""


class _Request(TypedDict, total=False):
    """What goes with a request, beside its method and path."""

    query: Mapping[str, str] | None
    body: Any
    content_type: str
    timeout: float | None


class Client:
    """Talks to one API server; an async context manager.

    Every method raises the errors of `memopod.kube.errors`. `timeout` is in seconds, for a whole
    request; a method's own `timeout` overrides it.
    """

    def __init__(
        self, path: str | None, *, timeout: float, user_agent: str, impersonate: str | None = None
    ) -> None:
        self._path = path
        self._impersonate = impersonate
        self._timeout = timeout
        self._user_agent = user_agent
        self._configuration: Any = None
        self._session: aiohttp.ClientSession | None = None
        self._reload = asyncio.Lock()

    @classmethod
    def from_kubeconfig(
        cls,
        path: str | None = None,
        *,
        timeout: float = 10.0,
        user_agent: str = "memopod",
        impersonate: str | None = None,
    ) -> "Client":
        """A client for the cluster of `path`, else $KUBECONFIG, ~/.kube/config, or the Pod's own cluster.

        `impersonate` is the user as whom all is asked, as with `kubectl --as`.
        The configuration is read when the context is entered, which raises ConfigurationError.
        """
        return cls(path, timeout=timeout, user_agent=user_agent, impersonate=impersonate)

    async def __aenter__(self) -> Self:
        self._configuration = await configurations.load(self._path, dict(os.environ))
        self._session = self._open_session()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def default_namespace(self) -> str:
        """The namespace to ask in where none is named, as kubectl has it. For an entered client."""
        return configurations.default_namespace(self._path, dict(os.environ))

    async def get(
        self, resource: Resource, name: str, *, namespace: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """One object."""
        return await self._call("GET", resource.path(namespace, name), timeout=timeout)

    async def read(self, path: str, *, timeout: float | None = None) -> bytes:
        """What the API server answers at a path of its own: `/version`, or a Service behind `/proxy/`."""
        return await self._read("GET", path, timeout=timeout)

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        name: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """The whole List object, read page by page; `name` selects one object by its name.

        `timeout` holds for each page. `metadata.resourceVersion` is the version to watch from.
        """
        scope: dict[str, Any] = {"namespace": namespace, "label_selector": label_selector, "name": name}
        items: list[dict[str, Any]] = []
        page: dict[str, Any] = {}
        try:
            async for page in self.pages(resource, **scope, timeout=timeout):
                items += page["items"]
        except Gone:
            # The snapshot went away between two pages: only one whole list is consistent now.
            query = _selectors(label_selector, name)
            page = await self._call("GET", resource.path(namespace), query=query, timeout=timeout)
            items = page.get("items") or []
        page["items"] = items
        return page

    async def pages(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        name: str | None = None,
        timeout: float | None = None,
        shape: type | None = None,
        page_size: int | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The pages of a list, each a List object: for collections too large to be held.

        `items` of a page is an iterator that decodes one object at a time. With a `shape`, a TypedDict,
        only its fields are decoded; an object that does not fit comes in full. Raises Gone where the
        reader took so long that the server no longer keeps the snapshot (minutes).
        """
        decode = decoder(shape)
        query = {**_selectors(label_selector, name), "limit": str(page_size or _PAGE)}
        while True:
            request = f"GET {resource.path(namespace)}"
            body = await self._read("GET", resource.path(namespace), query=query, timeout=timeout)
            try:
                page = split_page(body)
            except (ValueError, RecursionError) as error:
                raise cut_off(request, error) from error
            items = objects(page.items or [], decode, request)
            yield {
                "apiVersion": page.apiVersion,
                "kind": page.kind,
                "metadata": page.metadata,
                "items": items,
            }
            token = page.metadata.get("continue")
            if not token:
                return
            query["continue"] = token

    async def create(
        self,
        resource: Resource,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        name: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Create an object and return it as stored; or a `subresource` (`binding`, `token`) of the object
        `name`. With `dry_run` it is only returned as it would be stored.
        """
        path = resource.path(namespace, name, subresource)
        query = {"dryRun": "All"} if dry_run else None
        return await self._call("POST", path, query=query, body=body, timeout=timeout)

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Replace an object; with `metadata.resourceVersion` in it, only if nobody changed it since."""
        return await self._call("PUT", resource.path(namespace, name), body=body, timeout=timeout)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Change an object by a JSON patch (a list of operations) or a merge patch (an object)."""
        kind = "merge-patch" if isinstance(patch, Mapping) else "json-patch"
        return await self._call(
            "PATCH",
            resource.path(namespace, name, subresource),
            body=patch,
            content_type=f"application/{kind}+json",
            timeout=timeout,
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        grace_seconds: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Delete an object, with its dependents in the background; with `uid`, only that very object."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        options["propagationPolicy"] = "Background"
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self._call("DELETE", resource.path(namespace, name), body=options, timeout=timeout)

    async def watch(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        name: str | None = None,
        resource_version: str,
        timeout_seconds: float = 300,
        shape: type | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events `{"type", "object"}` after `resource_version`, bookmarks among them.

        Ends when the server ends it, after `timeout_seconds`; a connection that outlives that by ten
        seconds is taken for dead and raises Unavailable. An ERROR event is raised: Gone for a version
        that is too old. `shape` is that of `pages`.
        """
        decode = decoder(shape)
        path = resource.path(namespace)
        query = {
            **_selectors(label_selector, name),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(timeout_seconds))),
        }
        request = f"WATCH {path}"
        deadline = asyncio.get_running_loop().time() + timeout_seconds + _WATCH_GRACE
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._send("GET", path, query=query)
            async with response:
                lines = Lines()
                while True:
                    # Around the read alone: a deadline around a yield would interrupt the caller.
                    async with asyncio.timeout_at(deadline):
                        chunk = await response.content.readany()
                    if not chunk:
                        return
                    for line in lines.feed(chunk):
                        event = event_of(request, line, decode)
                        if event is None:
                            continue
                        if event["type"] == "ERROR":
                            raise from_status(request, event["object"].get("code", 500), event["object"])
                        yield event
        except TimeoutError as error:
            raise Unavailable(f"{request}: no answer, or no end, in time", reason="Timeout") from error
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            raise cut_off(request, error) from error

    async def _call(self, method: str, path: str, **request: Unpack[_Request]) -> dict[str, Any]:
        answer = await self._read(method, path, **request)
        try:
            decoded: dict[str, Any] = decode_json(answer)
        except (ValueError, RecursionError) as error:
            raise cut_off(f"{method} {path}", error) from error
        return decoded

    async def _read(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float | None = None,
    ) -> bytes:
        seconds = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(seconds):
                response = await self._send(method, path, query=query, body=body, content_type=content_type)
                async with response:
                    return await response.read()
        except TimeoutError as error:
            raise Unavailable(f"{method} {path}: no answer in {seconds:g} s", reason="Timeout") from error
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            raise cut_off(f"{method} {path}", error) from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """Answers with a 2xx response, or raises; credentials that were refused are loaded again, once."""
        used = self._configuration
        response = await self._send_once(method, path, query=query, body=body, content_type=content_type)
        if response.status == 401:
            response.release()
            async with self._reload:
                if self._configuration is used:
                    await self._renew_credentials()
            response = await self._send_once(method, path, query=query, body=body, content_type=content_type)
        if response.status >= 300:
            async with response:
                raise from_status(f"{method} {path}", response.status, status_of(await response.read()))
        return response

    async def _send_once(
        self, method: str, path: str, *, query: Mapping[str, str] | None, body: Any, content_type: str
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("expected an entered client: `async with Client.from_kubeconfig() as client`")
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        credentials = await configurations.authorization(self._configuration)
        if credentials is not None:
            headers["Authorization"] = credentials
        if self._impersonate is not None:
            headers["Impersonate-User"] = self._impersonate
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            # Not the bytes themselves: aiohttp warns of those over a mebibyte.
            data = io.BytesIO(msgspec.json.encode(body))
        return await self._session.request(
            method,
            self._configuration.host + path,
            params=query,
            data=data,
            headers=headers,
            proxy=self._configuration.proxy,
            proxy_headers=self._configuration.proxy_headers,
            server_hostname=self._configuration.tls_server_name,
            allow_redirects=False,
        )

    async def _renew_credentials(self) -> None:
        """Read the configuration again: token files are rotated, exec plugins hand out short-lived tokens."""
        renewed = await configurations.load(self._path, dict(os.environ))
        if self._session is not None and renewed.cert_file != self._configuration.cert_file:
            await self._session.close()
            self._configuration = renewed
            self._session = self._open_session()
        self._configuration = renewed

    def _open_session(self) -> aiohttp.ClientSession:
        host = urlsplit(self._configuration.host).hostname or ""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=100,
                ssl=configurations.ssl_context(self._configuration),
                socket_factory=_keepalive_socket,
            ),
            # Go's clients never send loopback traffic to a proxy; neither do we.
            trust_env=not (host == "localhost" or host.startswith("127.") or host == "::1"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
        )


def _keepalive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices within half a minute that its peer's machine is gone."""
    family, kind, protocol, _, _ = address
    connection = socket.socket(family=family, type=kind, proto=protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return connection


def _selectors(label_selector: str, name: str | None) -> dict[str, str]:
    query = {"labelSelector": label_selector} if label_selector else {}
    if name is not None:
        query["fieldSelector"] = f"metadata.name={name}"
    return query
