"""What can be set about Envoy."""

import ipaddress
import re
from dataclasses import dataclass
from typing import NamedTuple

from memopod.service import ServesTls, SpeaksTlsToStore, check_tls_to, setting
from memopod.service.tls import SYSTEM_CA

_FULL_PORT = 9091
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+")


class Endpoint(NamedTuple):
    """Where a server is: a host name or an IP address, and a port."""

    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Settings(ServesTls, SpeaksTlsToStore):
    """Flags and environment of `memopod envoy`."""

    listen_address: str = setting(
        "",
        "IP address of all listeners (default: all; `run` takes IPv6 too where the machine has it, "
        "`render` only with ::)",
    )
    listen_port: int = setting(
        9090, "port that reads and nothing else: grpc-web for browsers and user interfaces, and gRPC"
    )
    full_port: int | None = setting(
        None,
        "port of all RPCs, for writers: gRPC without grpc-web; 0 for none (default: 9091, and none beside "
        "--guard, since it leads past the guard)",
    )
    status_port: int = setting(9901, "port of GET /ready and GET /stats/prometheus")
    admin_socket: str = setting(
        "",
        "Unix socket of Envoy's admin interface, which has no authentication: a path, which Envoy's own user "
        "alone may open, or @NAME for one without a file, which every process of the Pod or machine may "
        "(default: /tmp/memopod-envoy-PORT.sock, after the listen port)",
    )
    store: tuple[str, ...] = setting(
        ("metadata-grpc-replicas:8080",),
        "HOST:PORT of the metadata stores. Each address that a name stands for is one replica, and each call "
        "goes to one of them: name a headless Service (any other has one address, which pins a connection to "
        "one replica), or list them",
    )
    guard: str | None = setting(
        None,
        "HOST:PORT of `memopod metadata-guard`: reads at the listen port go there instead of to the store. "
        "On another machine or Pod with --guard-tls only, since callers' tokens go along",
    )
    guard_tls: bool = setting(False, "speak TLS to the guard")
    guard_ca: str = setting(SYSTEM_CA, "PEM file: the authorities that the guard's certificate is of")
    guard_name: str = setting("", "name in the guard's certificate (default: the guard's host)")
    guard_certificate: str = setting("", "PEM file: certificate to show to the guard")
    guard_key: str = setting("", "PEM file: its key")
    cors_origins: tuple[str, ...] = setting(
        (),
        "origins whose pages may read: https://ui.example.org, with * for any part, or * alone for all "
        "(default: none, only pages that come through the same origin)",
    )
    access_log: bool = setting(True, "a JSON line on stdout for each call, without payloads")
    log_level: str = setting("warning", "Envoy's own: trace, debug, info, warning, error, critical or off")

    def __post_init__(self) -> None:
        self._check_ports()
        if self.listen_address:
            try:
                ipaddress.ip_address(self.listen_address)
            except ValueError:
                raise ValueError(
                    f"--listen-address: expected an IP address, got {self.listen_address!r}"
                ) from None
        if not self.store:
            raise ValueError("--store: expected HOST:PORT, got nothing")
        for store in self.store:
            endpoint(store, "--store")
        self._check_guard()
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"--cors-origins: expected SCHEME://HOST[:PORT] or *, got {origin!r}")
        self.check_tls()
        check_tls_to("store", self)
        check_tls_to("guard", self)

    def _check_ports(self) -> None:
        ports = {"--listen-port": self.listen_port, "--status-port": self.status_port}
        if self.full:
            ports["--full-port"] = self.full
        for flag, port in ports.items():
            if not 0 < port < 65536:
                raise ValueError(f"{flag}: expected a port, 1 to 65535, got {port}")
        if len(set(ports.values())) < len(ports):
            raise ValueError(
                f"expected different ports, got {', '.join(f'{f} {p}' for f, p in ports.items())}"
            )

    def _check_guard(self) -> None:
        if self.guard is None and self.guard_tls:
            raise ValueError("--guard-tls: expected --guard with it")
        if (
            self.guard is not None
            and not self.guard_tls
            and not _loopback(endpoint(self.guard, "--guard").host)
        ):
            raise ValueError(
                f"--guard {self.guard}: expected --guard-tls with it, since callers' tokens would cross the "
                "network in clear; or 127.0.0.1, in the same Pod"
            )

    @property
    def stores(self) -> tuple[Endpoint, ...]:
        """The stores' addresses."""
        return tuple(endpoint(store, "--store") for store in self.store)

    @property
    def full(self) -> int:
        """The port of all RPCs; 0 for none."""
        if self.full_port is None:
            return 0 if self.guard else _FULL_PORT
        return self.full_port

    @property
    def admin(self) -> str:
        """The admin interface's Unix socket; one that starts with @ has no file."""
        return self.admin_socket or f"/tmp/memopod-envoy-{self.listen_port}.sock"  # noqa: S108 (mode 0600)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def endpoint(text: str, flag: str) -> Endpoint:
    """HOST:PORT, an IPv6 address in brackets. Raises ValueError, naming `flag`, for anything else."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{flag}: expected HOST:PORT, got {text!r}")
    return Endpoint(bare, int(port))
