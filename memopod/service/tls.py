"""TLS as settings, for every service: what serves it to clients, and what speaks it to the store."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from memopod.service.settings import setting

SYSTEM_CA: Final = "/etc/ssl/certs/ca-certificates.crt"
"""The authorities that the machine trusts, where Debian and its like have them."""


@dataclass(frozen=True, kw_only=True)
class ServesTls:
    """Settings of what serves TLS; call `check_tls` in `__post_init__`."""

    tls_certificate: str = setting(
        "",
        "PEM file: serve TLS with this certificate chain; a renewed one is shown to new connections",
    )
    tls_key: str = setting("", "PEM file: its key")
    tls_client_ca: str = setting("", "PEM file: clients must show a certificate of these authorities")

    def check_tls(self) -> None:
        """Raise ValueError for settings that do not go together."""
        _both_or_neither(self, "tls_certificate", "tls_key")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("--tls-client-ca: expected --tls-certificate and --tls-key with it")


@dataclass(frozen=True, kw_only=True)
class SpeaksTlsToStore:
    """Settings of what speaks TLS to the metadata store; call `check_tls_to` in `__post_init__`."""

    store_tls: bool = setting(False, "speak TLS to the store")
    store_ca: str = setting(SYSTEM_CA, "PEM file: the authorities that the store's certificate is of")
    store_name: str = setting("", "name in the store's certificate (default: its host)")
    store_certificate: str = setting("", "PEM file: certificate to show to the store")
    store_key: str = setting("", "PEM file: its key")


def check_tls_to(peer: str, settings: Any) -> None:
    """Raise ValueError where settings `<peer>_tls`, `<peer>_ca` and so on do not go together."""
    _both_or_neither(settings, f"{peer}_certificate", f"{peer}_key")
    if getattr(settings, f"{peer}_tls"):
        return
    for field in dataclasses.fields(settings):
        if field.name in {f"{peer}_{part}" for part in ("ca", "name", "certificate")} and (
            getattr(settings, field.name) != field.default
        ):
            raise ValueError(f"{_flag(field.name)}: expected --{peer}-tls with it")


def _both_or_neither(settings: Any, *names: str) -> None:
    if len({bool(getattr(settings, name)) for name in names}) > 1:
        raise ValueError(f"{' and '.join(map(_flag, names))}: expected both or neither")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
