"""The sandbox's identity files: a CA, serving certificates, bearer tokens and kubeconfigs."""

import base64
import datetime as dt
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from memopod.service.issuing import (
    begun,
    certificate_pem,
    for_authority,
    for_server,
    key_pem,
    load_key,
    named,
)

LOCALHOST = "127.0.0.1"
_LIFETIME = dt.timedelta(days=825)
"""The longest that common TLS clients accept of a serving certificate."""
_CLOCK_SKEW = dt.timedelta(hours=1)
_RENEW_BEFORE = dt.timedelta(days=30)

_ACCOUNTS = "system:serviceaccounts"
USERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("sandbox-admin", ("system:masters",)),
    "cache-server": ("system:serviceaccount:memopod:cache-server", (_ACCOUNTS, f"{_ACCOUNTS}:memopod")),
    "metadata-writer": (
        "system:serviceaccount:memopod:metadata-writer",
        (_ACCOUNTS, f"{_ACCOUNTS}:memopod"),
    ),
    "janitor": ("system:serviceaccount:memopod:janitor", (_ACCOUNTS, f"{_ACCOUNTS}:memopod")),
    "kubelet": ("system:node:sandbox", ("system:nodes",)),
    "workflow-controller": ("system:serviceaccount:argo:argo", (_ACCOUNTS, f"{_ACCOUNTS}:argo")),
}
"""Component -> user name and groups, as the API server tells webhooks."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Where the identity files of a sandbox are. `kubeconfig` is the administrator's."""

    ca: Path
    apiserver: Pair
    cache_server: Pair
    tokens: Path
    kubeconfig: Path
    kubeconfigs: dict[str, Path]

    @classmethod
    def below(cls, state: Path) -> Self:
        """Those in the folder `state`."""
        tls = state / "tls"
        return cls(
            ca=tls / "ca.crt",
            apiserver=Pair(tls / "apiserver.crt", tls / "apiserver.key"),
            cache_server=Pair(tls / "cache-server.crt", tls / "cache-server.key"),
            tokens=state / "tokens.json",
            kubeconfig=state / "kubeconfig",
            kubeconfigs={name: state / "kube" / f"{name}.kubeconfig" for name in USERS if name != "admin"},
        )

    @property
    def ca_bundle(self) -> str:
        """The CA as `caBundle` of a webhook configuration."""
        return base64.b64encode(self.ca.read_bytes()).decode()


def prepare_state(
    state: Path, api_port: int, *, host: str = LOCALHOST, hosts: Sequence[str] = ()
) -> StateFiles:
    """Write what is missing in a sandbox's folder, and return where it is.

    `host` is where the API server is found, `hosts` are further names in the certificates. A second
    call changes nothing, but for the kubeconfigs after a change of address and for certificates that
    are about to expire, or lack a name. Keys, tokens and kubeconfigs are readable by their owner
    only. Raises OSError if the folder cannot be written.
    """
    files = StateFiles.below(state)
    for folder in (state, files.ca.parent, state / "kube"):
        _folder(folder)
    authority = _authority(Pair(files.ca, files.ca.with_suffix(".key")))
    hosts = tuple(dict.fromkeys(name for name in (host, *hosts) if name != LOCALHOST))
    _serving(authority, files.apiserver, "kube-apiserver", hosts)
    _serving(authority, files.cache_server, "cache-server", hosts)
    tokens = _tokens(files.tokens)
    server = f"https://{host}:{api_port}"
    for name, path in {**files.kubeconfigs, "admin": files.kubeconfig}.items():
        _write_secret(path, _kubeconfig(authority.certificate.read_bytes(), server, name, tokens[name]))
    return files


def _authority(pair: Pair) -> Pair:
    if not _is_current(pair):
        key = ec.generate_private_key(ec.SECP256R1())
        name = named("memopod sandbox CA")
        builder = for_authority(_builder(name, name, key.public_key(), key.public_key()))
        _write_pair(pair, builder.sign(key, hashes.SHA256()), key)
    return pair


def _serving(authority: Pair, pair: Pair, common_name: str, hosts: Sequence[str]) -> None:
    """A certificate for 127.0.0.1, ::1, localhost and `hosts`, signed by the authority."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    if _is_current(pair, issuer, hosts):
        return
    issuer_key = load_key(authority.key.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(named(common_name), issuer.subject, key.public_key(), issuer_key.public_key())
    builder = for_server(builder, ["localhost", LOCALHOST, "::1", *hosts])
    _write_pair(pair, builder.sign(issuer_key, hashes.SHA256()), key)


def _is_current(pair: Pair, issuer: x509.Certificate | None = None, hosts: Sequence[str] = ()) -> bool:
    if not pair.certificate.exists() or not pair.key.exists():
        return False
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    if issuer is not None and certificate.issuer != issuer.subject:
        return False
    return certificate.not_valid_after_utc - _RENEW_BEFORE > _now() and (
        issuer is None
        or (_authority_key(certificate) == _subject_key(issuer) and _names(certificate).issuperset(hosts))
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    builder = begun(subject, issuer, key, _now() - _CLOCK_SKEW, _now() + _LIFETIME)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return builder.add_extension(issued_by, critical=False)


def _subject_key(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def _authority_key(certificate: x509.Certificate) -> bytes | None:
    return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier


def _names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _write_pair(pair: Pair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    _write_secret(pair.key, key_pem(key))
    _write(pair.certificate, certificate_pem(certificate), mode=0o644)


def _tokens(path: Path) -> dict[str, str]:
    """Component -> token, from the file of tokens, completed with new ones."""
    known: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    by_user = {entry["username"]: token for token, entry in known.items()}
    missing = {name: user for name, user in USERS.items() if user[0] not in by_user}
    for username, groups in missing.values():
        token = secrets.token_urlsafe(32)
        known[token] = {"username": username, "groups": list(groups)}
        by_user[username] = token
    if missing:
        _write_secret(path, msgspec.json.format(msgspec.json.encode(known)))
    return {name: by_user[user[0]] for name, user in USERS.items()}


def _kubeconfig(authority: bytes, server: str, user: str, token: str) -> bytes:
    cluster = {
        "server": server,
        "certificate-authority-data": base64.b64encode(authority).decode(),
    }
    context = {"cluster": "sandbox", "user": user, "namespace": "pipelines"}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "sandbox", "context": context}],
        "current-context": "sandbox",
    }
    return yaml.safe_dump(document, sort_keys=False).encode()


def _folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write_secret(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        _write(path, content, mode=0o600)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Whole or not at all: a reader, or a crash, never meets half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
    beside.replace(path)
