"""Which calls go on to a store, by path, method and content type, and which of them are asked again."""

import re
from typing import Any

from memopod.proxy.clusters import BUFFER_BYTES
from memopod.proxy.reads import QUICK, READS

_Json = dict[str, Any]

_TYPES = "type.googleapis.com/envoy.extensions"
SERVICE = "/ml_metadata.MetadataStoreService/"
HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List")
"""By name, like the reads: Envoy counts anything else that is asked for in grpc-web, without end."""
REFLECTION = "/grpc.reflection."
GRPC = r"application/grpc([+;].*)?"
TEXT = r"application/grpc-web-text(\+proto)?"
BROWSERS_OR_GRPC = rf"application/grpc-web(\+proto)?|{GRPC}"
"""Content types, exactly: a store resets any other call, which looks as if the store itself had failed."""

_QUICK_SECONDS = 5
"""A read of one row takes a store milliseconds; one that waits for longer does not answer at all."""

TEXT_BYTES = 16 * BUFFER_BYTES
"""The longest request in grpc-web's text, which Envoy holds as a whole. Browsers' are some hundred bytes."""


def reads(cluster: str, kinds: str) -> list[_Json]:
    """The routes of the known reads with these content types; an attempt at one that is over at once is
    given up early.
    """
    return [
        called(match, kinds, route(cluster) | {"retry_policy": _retries(limit)}) for match, limit in names()
    ]


def names() -> list[tuple[_Json, int | None]]:
    """What matches the paths of reads, and for how many seconds an attempt may be silent."""
    return [
        ({"safe_regex": {"regex": re.escape(SERVICE) + f"({'|'.join(sorted(group))})"}}, limit)
        for group, limit in ((QUICK, _QUICK_SECONDS), (READS - QUICK, None))
    ]


def called(match: _Json, kinds: str, passed: _Json) -> _Json:
    """A route for POSTs with these content types."""
    headers = [
        {"name": ":method", "string_match": {"exact": "POST"}},
        {"name": "content-type", "string_match": {"safe_regex": {"regex": kinds}}},
    ]
    return {"match": match | {"headers": headers}, "route": passed}


def whole() -> _Json:
    """Wait for all of a request. Without this, one in text that comes in pieces of less than four characters
    reaches the store mutilated, and is answered: grpc-web's filter holds such a piece back, and what it then
    passes on is mixed with what is kept for a retry.
    """
    kind = f"{_TYPES}.filters.http.buffer.v3.BufferPerRoute"
    return {"envoy.filters.http.buffer": {"@type": kind, "buffer": {"max_request_bytes": TEXT_BYTES}}}


def route(cluster: str) -> _Json:
    """To one of a cluster's replicas, for as long as the client waits."""
    return {
        "cluster": cluster,
        "timeout": "0s",  # no limit of Envoy's own: large answers take their time
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},  # the client's grpc-timeout, uncapped
    }


def _retries(seconds: int | None) -> _Json:
    """Up to three further attempts, each elsewhere. `seconds`: how long one may take, where that is known;
    a replica that hangs is found out by its connection otherwise (`clusters`), within 15 s.
    """
    predicate = "retry.host.previous_hosts.v3.PreviousHostsPredicate"
    policy: _Json = {
        "retry_on": "connect-failure,refused-stream,reset,unavailable",
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.5s"},
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": f"{_TYPES}.{predicate}"},
            }
        ],
        # A replica that is gone has the fewest calls under way and is drawn first, again and again.
        "host_selection_retry_max_attempts": 30,
    }
    return policy if seconds is None else policy | {"per_try_timeout": f"{seconds}s"}
