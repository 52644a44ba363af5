"""The whole of it: one static configuration, `envoy -c` runs it as it is."""

from typing import Any

from memopod.proxy.clusters import clusters
from memopod.proxy.listeners import listeners
from memopod.proxy.settings import Settings

EVERYWHERE = "0.0.0.0"  # noqa: S104 (what a service in a Pod listens on)
"""The address of the listeners where none is set: all of IPv4, which every machine has."""
_CONNECTIONS = 20_000
_PATTERN_STEPS = 2000
"""How long a pattern may be as RE2 compiles it: the one of all RPCs is longer than Envoy's default, 100."""


def bootstrap(settings: Settings, folder: str = "") -> dict[str, Any]:
    """Envoy's bootstrap configuration (`envoy.config.bootstrap.v3.Bootstrap`), as YAML and JSON write it.

    `folder`: where the files of `tls.secrets` are, for certificates that are read again; "" for none.
    """
    monitor = "envoy.resource_monitors.global_downstream_max_connections"
    kind = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    socket: dict[str, Any] = {"path": settings.admin}
    if not settings.admin.startswith("@"):
        socket["mode"] = 0o600
    return {
        "node": {"id": "memopod", "cluster": "memopod"},  # must be something where secrets come from files
        "admin": {"address": {"pipe": socket}},
        "layered_runtime": {
            "layers": [
                {"name": "static", "static_layer": {"re2.max_program_size.error_level": _PATTERN_STEPS}}
            ]
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": monitor,
                    "typed_config": {
                        "@type": f"type.googleapis.com/{kind}",
                        "max_active_downstream_connections": _CONNECTIONS,
                    },
                }
            ]
        },
        "static_resources": {
            "listeners": listeners(settings, settings.listen_address or EVERYWHERE, folder),
            "clusters": clusters(settings, folder),
        },
    }
