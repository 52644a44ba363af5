"""Certificates on both sides.

Envoy reads a certificate again only if it gets it as a *secret* (SDS), and secrets only from files of their
own. So there are two forms: without a folder for such files the configuration names the certificates itself,
which are read once; with one it names the files in it, which `secrets` gives.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from memopod.proxy.settings import Settings, endpoint

_Json = dict[str, Any]
_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


class _Side(NamedTuple):
    """Files of one side's TLS; "" for none."""

    name: str
    certificate: str
    key: str
    ca: str


def downstream(settings: Settings, protocols: list[str], folder: str) -> Mapping[str, Any]:
    """The `transport_socket` of a listener that offers these ALPN protocols; empty without TLS."""
    if not settings.tls_certificate:
        return {}
    common = {"alpn_protocols": protocols, **_files(_clients(settings), folder)}
    return _socket("DownstreamTlsContext", common, require_client_certificate=bool(settings.tls_client_ca))


def to_stores(settings: Settings, folder: str) -> Mapping[str, Any]:
    """The `transport_socket` of the stores' clusters; empty without TLS."""
    if not settings.store_tls:
        return {}
    return _upstream(_stores(settings), settings.store_name or settings.stores[0].host, folder)


def to_guard(settings: Settings, folder: str) -> Mapping[str, Any]:
    """The `transport_socket` of the guard's cluster; empty without TLS."""
    if settings.guard is None or not settings.guard_tls:
        return {}
    return _upstream(
        _guard(settings), settings.guard_name or endpoint(settings.guard, "--guard").host, folder
    )


def secrets(settings: Settings) -> Mapping[str, _Json]:
    """The files for a folder of secrets, by name: each a `DiscoveryResponse`."""
    return {
        f"{name}.json": {"resources": [{"@type": f"{_TYPE}Secret", "name": name, **content}]}
        for side in (_clients(settings), _stores(settings), _guard(settings))
        for name, content in _secrets(side)
    }


def _clients(settings: Settings) -> _Side:
    return _Side("clients", settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _stores(settings: Settings) -> _Side:
    if not settings.store_tls:
        return _Side("stores", "", "", "")
    return _Side("stores", settings.store_certificate, settings.store_key, settings.store_ca)


def _guard(settings: Settings) -> _Side:
    if not settings.guard_tls:
        return _Side("guard", "", "", "")
    return _Side("guard", settings.guard_certificate, settings.guard_key, settings.guard_ca)


def _secrets(side: _Side) -> Iterator[tuple[str, _Json]]:
    if side.certificate:
        yield f"{side.name}-certificate", {"tls_certificate": _pair(side) | _watched(side.certificate)}
    if side.ca:
        authorities = {"trusted_ca": {"filename": side.ca}} | _watched(side.ca)
        yield f"{side.name}-ca", {"validation_context": authorities}


def _watched(file: str) -> _Json:
    """A mounted Secret is renewed by exchanging a link beside its files, which are links through it."""
    return {"watched_directory": {"path": str(PurePath(file).parent)}}


def _files(side: _Side, folder: str) -> _Json:
    """The fields of a `CommonTlsContext` for a side's certificate and authorities."""
    fields: _Json = {}
    if side.certificate and folder:
        fields["tls_certificate_sds_secret_configs"] = [_secret(folder, f"{side.name}-certificate")]
    elif side.certificate:
        fields["tls_certificates"] = [_pair(side)]
    if side.ca and folder:
        fields["validation_context_sds_secret_config"] = _secret(folder, f"{side.name}-ca")
    elif side.ca:
        fields["validation_context"] = {"trusted_ca": {"filename": side.ca}}
    return fields


def _upstream(side: _Side, name: str, folder: str) -> Mapping[str, Any]:
    common = {"alpn_protocols": ["h2"], **_files(side, folder)}
    # An authority may have signed others too: the name must be the server's.
    names = {
        "match_typed_subject_alt_names": [
            {"san_type": kind, "matcher": {"exact": name}} for kind in ("DNS", "IP_ADDRESS")
        ]
    }
    secret = common.pop("validation_context_sds_secret_config", None)
    if secret is None:
        common["validation_context"] |= names
    else:
        common["combined_validation_context"] = {
            "default_validation_context": names,
            "validation_context_sds_secret_config": secret,
        }
    return _socket("UpstreamTlsContext", common, sni=name)


def _pair(side: _Side) -> _Json:
    return {"certificate_chain": {"filename": side.certificate}, "private_key": {"filename": side.key}}


def _secret(folder: str, name: str) -> _Json:
    source = {"path_config_source": {"path": str(PurePath(folder, f"{name}.json"))}}
    return {"name": name, "sds_config": {**source, "resource_api_version": "V3"}}


def _socket(kind: str, common: _Json, **more: Any) -> _Json:
    context = {"@type": _TYPE + kind, "common_tls_context": common, **more}
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}
