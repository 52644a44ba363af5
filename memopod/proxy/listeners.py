"""Envoy's side of the clients: three listeners, and who may call what at each."""

import re
from collections.abc import Mapping
from typing import Any

from memopod.proxy import tls
from memopod.proxy.clusters import ADMIN, BUFFER_BYTES, GUARD, STORE, STORE_FULL
from memopod.proxy.routes import (
    BROWSERS_OR_GRPC,
    GRPC,
    HEALTH,
    REFLECTION,
    SERVICE,
    TEXT,
    TEXT_BYTES,
    called,
    names,
    reads,
    route,
    whole,
)  # fmt: skip
from memopod.proxy.settings import Settings

_Json = dict[str, Any]

_TYPES = "type.googleapis.com/envoy.extensions"
_NOWHERE = "nowhere"
"""No cluster, for a route whose calls are all refused: Envoy counts a cluster's grpc-web calls by the names
of their methods, and anybody can think of new ones without end."""
_REFUSED = "this port only reads: write through the full port, or to the metadata store itself"
_OWN_ANSWERS: Mapping[int, tuple[int, str]] = {
    400: (13, "%RESPONSE_CODE_DETAILS%"),
    403: (7, _REFUSED),
    404: (12, "no such method here"),
    408: (4, "the request did not arrive in time"),
    413: (8, "the request is too large"),
    415: (3, "expected POST and the content type application/grpc-web+proto, -text or application/grpc"),
    503: (14, "the metadata store cannot be reached"),
    504: (4, "the deadline has passed"),
}
"""HTTP status of an answer that Envoy gives by itself -> gRPC status and message."""

_NOBODY = {
    "@type": f"{_TYPES}.filters.http.rbac.v3.RBACPerRoute",
    "rbac": {"rules": {"action": "ALLOW", "policies": {}}},
}
"""Refuses every call of a route. (An answer of the route's own would lack the headers of CORS.)"""

_NO_QUESTION = {"name": ":method", "string_match": {"exact": "OPTIONS"}, "invert_match": True}

_CORS_METHODS = "GET, PUT, DELETE, POST, OPTIONS"
_CORS_HEADERS = (  # Kubeflow's list, and what a guard asks for
    "keep-alive,user-agent,cache-control,content-type,content-transfer-encoding,custom-header-1,"
    "x-accept-content-transfer-encoding,x-accept-response-streaming,x-user-agent,x-grpc-web,grpc-timeout,"
    "authorization"
)
_CORS_EXPOSED = "custom-header-1,grpc-status,grpc-message"
_CORS_SECONDS = "1728000"

_HEADERS_KB = 96
"""The store's 16 KB of metadata, and beside it the cookies of whatever signs people in before the UI."""


def listeners(settings: Settings, address: str, folder: str) -> list[_Json]:
    """The listeners at `address`: for reads, for all RPCs, and for Envoy's own state. `folder`: see `tls`."""
    found = [
        _listener(
            "read", address, settings.listen_port,
            _read(settings), tls.downstream(settings, ["h2", "http/1.1"], folder),
        ),
        _listener("status", address, settings.status_port, _status()),
    ]  # fmt: skip
    if settings.full:
        socket = tls.downstream(settings, ["h2"], folder)
        full = _listener("full", address, settings.full, _full(settings), socket)
        found.insert(1, full)
    return found


def _listener(
    name: str, address: str, port: int, manager: _Json, transport: Mapping[str, Any] | None = None
) -> _Json:
    kind = f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
    config = {"@type": kind, "stat_prefix": name, **manager}
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}]}
    return {
        "name": name,
        "address": {
            "socket_address": {"address": address, "port_value": port, "ipv4_compat": address == "::"}
        },
        # A second Envoy on the port shall fail at its start, not take a part of the connections.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [{**chain, **(transport or {})}],
    }


def _read(settings: Settings) -> _Json:
    """Reads, asked again of another replica where one fails; every write is refused."""
    behind = STORE if settings.guard is None else GUARD
    # Cookies alone may be more than the store takes, and only a guard has a use for a token.
    removed = ["cookie", *([] if settings.guard else ["authorization"])]
    routes = [
        *reads(behind, BROWSERS_OR_GRPC),
        *({**read, "typed_per_filter_config": whole()} for read in reads(behind, TEXT)),
        *(called({"path": path}, f"{BROWSERS_OR_GRPC}|{TEXT}", route(behind)) for path in HEALTH),
        # A read, but no call that a store takes. (What a page asks before its call is, and goes on to CORS.)
        *(
            {"match": match | {"headers": [_NO_QUESTION]}, "direct_response": {"status": 415}}
            for match, _ in names()
        ),
        {
            "match": {"prefix": "/ml_metadata", "case_sensitive": False},
            "route": {"cluster": _NOWHERE},
            "typed_per_filter_config": {"envoy.filters.http.rbac": _NOBODY},
        },
    ]
    host: _Json = {
        "name": "read", "domains": ["*"], "request_headers_to_remove": removed, "routes": routes,
    }  # fmt: skip
    filters = [
        # Only where a route asks for it (see `routes.whole`).
        _filter("buffer", "buffer.v3.Buffer", max_request_bytes=TEXT_BYTES) | {"disabled": True},
        _filter("grpc_web", "grpc_web.v3.GrpcWeb"),
        _filter("rbac", "rbac.v3.RBAC"),
        _filter("router", "router.v3.Router"),
    ]
    if settings.cors_origins:
        filters.insert(0, _filter("cors", "cors.v3.Cors"))
        # The key must be the filter's own name: under any other the policy is ignored without a word.
        host["typed_per_filter_config"] = {"envoy.filters.http.cors": _cors(settings.cors_origins)}
    return _manager(settings, "read", host, filters) | {
        "codec_type": "AUTO",  # HTTP/1.1 from browsers, HTTP/2 from gRPC clients
        "http_protocol_options": {"accept_http_10": True},  # what nginx speaks to whom it passes calls on to
        "request_timeout": "60s",  # a read's request is small: who takes longer holds a stream for nothing
        "local_reply_config": _local_replies(),
    }


def _full(settings: Settings) -> _Json:
    """Every RPC, each sent once: whether a write that failed was carried out, only its client can find out.

    HTTP/2 and gRPC's own content type alone: a page can send that only after a preflight, which has no
    answer here. (Over TLS, browsers speak HTTP/2 too.)
    """
    prefixes = ({"prefix": prefix} for prefix in (SERVICE, REFLECTION))
    routes = [
        *reads(STORE_FULL, GRPC),
        *(called(match, GRPC, route(STORE_FULL)) for match in (*prefixes, *({"path": p} for p in HEALTH))),
    ]
    removed = ["cookie", "authorization"]
    host = {"name": "full", "domains": ["*"], "request_headers_to_remove": removed, "routes": routes}
    return _manager(settings, "full", host, [_filter("router", "router.v3.Router")]) | {"codec_type": "HTTP2"}


def _status() -> _Json:
    """Two harmless paths of the admin interface, which itself can change and end Envoy."""
    get = [{"name": ":method", "string_match": {"exact": "GET"}}]
    routes = [
        {"match": {"path": path, "headers": get}, "route": {"cluster": ADMIN, "timeout": "10s"}}
        for path in ("/ready", "/stats/prometheus")
    ]
    return {
        "codec_type": "AUTO",
        "request_headers_timeout": "10s",
        "route_config": {
            "name": "status",
            "virtual_hosts": [{"name": "status", "domains": ["*"], "routes": routes}],
        },
        "http_filters": [_filter("router", "router.v3.Router")],
    }


def _manager(settings: Settings, name: str, host: _Json, filters: list[_Json]) -> _Json:
    found: _Json = {
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        # A long query is silent until it answers. The store itself gives a call up after 600 s, so a
        # stream that is silent for longer has lost its client.
        "stream_idle_timeout": "660s",
        "request_headers_timeout": "10s",
        "max_request_headers_kb": _HEADERS_KB,
        "http2_protocol_options": {
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": BUFFER_BYTES,
            "initial_connection_window_size": 16 * BUFFER_BYTES,
        },
        "route_config": {"name": name, "virtual_hosts": [host], "validate_clusters": False},  # see _NOWHERE
        "http_filters": filters,
    }
    if settings.access_log:
        found["access_log"] = [_access_log(name)]
    return found


def _filter(name: str, kind: str, **more: Any) -> _Json:
    config = {"@type": f"{_TYPES}.filters.http.{kind}", **more}
    return {"name": f"envoy.filters.http.{name}", "typed_config": config}


def _cors(origins: tuple[str, ...]) -> _Json:
    return {
        "@type": f"{_TYPES}.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"safe_regex": {"regex": _pattern(origin)}} for origin in origins],
        "allow_methods": _CORS_METHODS,
        "allow_headers": _CORS_HEADERS,
        "expose_headers": _CORS_EXPOSED,
        "max_age": _CORS_SECONDS,
    }


def _pattern(origin: str) -> str:
    """A * is any part of a name, not a way out of it: https://*.a.org is not https://evil.org/.a.org."""
    if origin == "*":
        return ".*"
    return "[A-Za-z0-9.-]+".join(re.escape(part) for part in origin.split("*"))


def _local_replies() -> _Json:
    """Envoy's own answers to gRPC and grpc-web calls: HTTP 200, the status in a header.

    Without this those to grpc-web are HTTP errors, which browsers' clients report as an unknown failure.
    The grpc-web filter, which has made a call's content type gRPC's by now, makes the answer's its own again.
    """
    called = {
        "header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}
    }

    def mapper(comparison: str, status: int, code: int, message: str) -> _Json:
        value = {"default_value": status, "runtime_key": "unused"}
        is_status = {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}
        told = {"grpc-status": str(code), "grpc-message": message}
        return {
            "filter": {"and_filter": {"filters": [called, is_status]}},
            "status_code": 200,
            "headers_to_add": [{"header": {"key": key, "value": text}} for key, text in told.items()],
            "body_format_override": {
                "text_format_source": {"inline_string": ""},
                "content_type": "application/grpc",
            },
        }

    known = [mapper("EQ", status, code, message) for status, (code, message) in _OWN_ANSWERS.items()]
    return {"mappers": [*known, mapper("GE", 400, 2, "%RESPONSE_CODE_DETAILS%")]}


def _access_log(listener: str) -> _Json:
    """One line a call: which RPC, how it ended, how long it took. No message, no query, no header's value."""
    fields = {
        "time": "%START_TIME%",
        "listener": listener,
        "path": "%PATH(NQ):200%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "milliseconds": "%DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "replica": "%UPSTREAM_HOST%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": f"{_TYPES}.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"json_format": fields},
        },
    }
