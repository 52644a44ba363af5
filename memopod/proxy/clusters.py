"""Envoy's side of the stores: which replica answers a call, and which is left out."""

from collections.abc import Iterable
from typing import Any

from memopod.proxy import tls
from memopod.proxy.settings import Endpoint, Settings, endpoint

STORE = "store"
"""The metadata stores, as the reading port sees them."""
STORE_FULL = "store-full"
"""The same, with connections of their own: what readers do to theirs does not reach writers."""
GUARD = "guard"
"""The metadata guards: reads with a namespace's limits."""
ADMIN = "admin"
"""Envoy's own admin interface, for the two paths of the status listener."""

BUFFER_BYTES = 1024 * 1024
"""What Envoy holds of one stream: a client that reads slowly slows its own call, and costs no more."""
_STREAMS = 32
"""Calls that share a connection to a replica; further ones open another."""
_CONNECTION_WINDOW = 2 * _STREAMS * BUFFER_BYTES
"""More than its calls can fill together: answers that nobody reads never hold up the others."""
_AT_ONCE = 10_000
"""Calls under way to all replicas: far above what they serve, so the stores say when it is enough."""


def clusters(settings: Settings, folder: str) -> list[dict[str, Any]]:
    """The clusters that the listeners' routes name. `folder`: see `tls`."""
    names = [STORE, STORE_FULL] if settings.full else [STORE]
    found = [{**_grpc(name, settings.stores), **tls.to_stores(settings, folder)} for name in names]
    if settings.guard is not None:
        guards = [endpoint(settings.guard, "--guard")]
        found.append({**_grpc(GUARD, guards), **tls.to_guard(settings, folder)})
    found.append(
        {
            "name": ADMIN,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": _assignment(ADMIN, [{"pipe": {"path": settings.admin}}]),
        }
    )
    return found


def _grpc(name: str, endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    addresses = [{"socket_address": {"address": host, "port_value": port}} for host, port in endpoints]
    return {
        "name": name,
        # Every address of every name is a replica, looked up again every five seconds (Envoy's default).
        "type": "STRICT_DNS",
        "dns_lookup_family": "ALL",
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        # For each call, whichever of two replicas has fewer under way: a long query draws no others.
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {
            # Replicas that fail their checks get calls only if all do: a store without a health service
            # (upstream's) works, and where the database is away the stores themselves say so.
            "healthy_panic_threshold": {"value": 1},
            # Who is left out is left out at once; by default Envoy waits a second to tell its workers.
            "update_merge_window": "0s",
        },
        "health_checks": [
            {
                "grpc_health_check": {},
                "interval": "2s",
                "no_traffic_interval": "2s",
                "timeout": "1s",
                "healthy_threshold": 1,
                "unhealthy_threshold": 2,
            }
        ],
        # A replica that cannot be reached is left out before its next check. What it answers never leaves
        # it out: with some queries any replica would fail, and a client could send away one after the other.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 2,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "2s",
            "max_ejection_time": "30s",
            "max_ejection_percent": 100,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _AT_ONCE,
                    "max_pending_requests": _AT_ONCE,
                    "max_requests": _AT_ONCE,
                    # Where every replica refuses, asking again must not be most of the load.
                    "retry_budget": {
                        "budget_percent": {"value": 50},
                        "min_retry_concurrency": 100,
                    },
                }
            ]
        },
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "max_concurrent_streams": _STREAMS,
                        "initial_stream_window_size": BUFFER_BYTES,
                        "initial_connection_window_size": _CONNECTION_WINDOW,
                        # A replica whose machine is gone says nothing: ask.
                        "connection_keepalive": {"interval": "10s", "timeout": "5s"},
                    }
                },
            }
        },
        "load_assignment": _assignment(name, addresses),
    }


def _assignment(name: str, addresses: list[dict[str, Any]]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
