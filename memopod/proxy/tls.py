"""Certificates on both sides. Files are read at start: a renewed certificate needs a restart."""

from collections.abc import Mapping
from typing import Any

from memopod.proxy.settings import Settings, endpoint

_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def downstream(settings: Settings, protocols: list[str]) -> Mapping[str, Any]:
    """The `transport_socket` of a listener that offers these ALPN protocols; empty without TLS."""
    if not settings.tls_certificate:
        return {}
    common: dict[str, Any] = {
        "alpn_protocols": protocols,
        "tls_certificates": [_pair(settings.tls_certificate, settings.tls_key)],
    }
    if settings.tls_client_ca:
        common["validation_context"] = {"trusted_ca": {"filename": settings.tls_client_ca}}
    return _socket("DownstreamTlsContext", common, require_client_certificate=bool(settings.tls_client_ca))


def to_stores(settings: Settings) -> Mapping[str, Any]:
    """The `transport_socket` of the stores' clusters; empty without TLS."""
    if not settings.store_tls:
        return {}
    name = settings.store_name or settings.stores[0].host
    return _upstream(name, settings.store_ca, settings.store_certificate, settings.store_key)


def to_guard(settings: Settings) -> Mapping[str, Any]:
    """The `transport_socket` of the guard's cluster; empty without TLS."""
    if settings.guard is None or not settings.guard_tls:
        return {}
    name = settings.guard_name or endpoint(settings.guard, "--guard").host
    return _upstream(name, settings.guard_ca, settings.guard_certificate, settings.guard_key)


def _upstream(name: str, ca: str, certificate: str, key: str) -> Mapping[str, Any]:
    common: dict[str, Any] = {
        "alpn_protocols": ["h2"],
        "validation_context": {
            "trusted_ca": {"filename": ca},
            # An authority may have signed others too: the name must be the server's.
            "match_typed_subject_alt_names": [
                {"san_type": kind, "matcher": {"exact": name}} for kind in ("DNS", "IP_ADDRESS")
            ],
        },
    }
    if certificate:
        common["tls_certificates"] = [_pair(certificate, key)]
    return _socket("UpstreamTlsContext", common, sni=name)


def _pair(certificate: str, key: str) -> dict[str, Any]:
    return {"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}


def _socket(kind: str, common: dict[str, Any], **more: Any) -> dict[str, Any]:
    context = {"@type": _TYPE + kind, "common_tls_context": common, **more}
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}
