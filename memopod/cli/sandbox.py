"""`memopod sandbox`: a cluster on this machine."""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from memopod.sandbox.errors import SandboxError
from memopod.sandbox.services import Layout
from memopod.sandbox.stack import Servers, prepare_stack, stack
from memopod.sandbox.state import DEFAULT
from memopod.sandbox.supervisor import run_sandbox
from memopod.service import configure_logs, run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help=(
        "A cluster on this machine: an API server, a kubelet that runs Pods as local processes, and all of "
        "memopod's services."
    ),
    epilog="Example: memopod sandbox up",
)


StateOption = Annotated[Path, typer.Option("--state", metavar="DIR", help="The sandbox's folder.")]
ApiServerOption = Annotated[
    str,
    typer.Option("--api-server", metavar="HOST:PORT", help="Where the other services find the API server."),
]
CacheServerOption = Annotated[
    str, typer.Option("--cache-server", metavar="HOST:PORT", help="Where the API server finds the webhook.")
]


@app.callback()
def _group() -> None:
    """A group of its own, even with a single command in it."""


@app.command(epilog="Examples:\n\nmemopod sandbox up\n\nmemopod sandbox up --state /tmp/other")
def up(
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="Folder of everything that the sandbox writes.")
    ] = DEFAULT,
    control_plane: Annotated[
        bool,
        typer.Option(
            "--control-plane",
            help="Use etcd and Kubernetes' own API server, as `make control-plane` builds them.",
        ),
    ] = False,
) -> None:
    """Start a sandbox and keep it running until Ctrl-C; `ready` on a line says that it can be used."""
    _run(state, lambda description: _tell(state, description), control_plane=control_plane)


@app.command(epilog="Example: docker-compose.yml")
def init(
    state: StateOption,
    secrets: Annotated[
        Path,
        typer.Option("--secrets", metavar="DIR", help="Folder of what the other servers' users may read."),
    ],
    mariadb: Annotated[str, typer.Option("--mariadb", metavar="HOST:PORT")],
    redis: Annotated[str, typer.Option("--redis", metavar="HOST:PORT")],
    api_server: ApiServerOption,
    cache_server: CacheServerOption,
) -> None:
    """Write what a sandbox in containers shares: certificates, kubeconfigs, passwords. Each is made once."""
    layout = _placed(stack(state), api_server=api_server, cache_server=cache_server)
    try:
        prepare_stack(layout, secrets, Servers(mariadb, redis))
    except SandboxError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.command(epilog="Example: docker-compose.yml")
def cluster(
    state: StateOption,
    listen_address: Annotated[
        str, typer.Option("--listen-address", metavar="IP", help="Address of the API server.")
    ],
    api_server: ApiServerOption,
    cache_server: CacheServerOption,
    store: Annotated[str, typer.Option("--store", metavar="HOST:PORT", help="Where the metadata store is.")],
    envoy: Annotated[str, typer.Option("--envoy", metavar="HOST:PORT", help="Where Envoy is.")],
    bucket: Annotated[
        str, typer.Option("--bucket", metavar="URL", help="Where artifacts go: s3://BUCKET?endpoint=URL")
    ],
    kubelet_health_port: Annotated[
        int, typer.Option("--kubelet-health-port", metavar="PORT", help="/readyz tells that Pods can run.")
    ],
) -> None:
    """Run the cluster of a sandbox alone: API server and kubelet. All other services run elsewhere."""
    layout = stack(state, cluster_only=True)
    layout = _placed(layout, api_server=api_server, cache_server=cache_server, store=store, envoy=envoy)
    ports = dataclasses.replace(layout.ports, kubelet_health=kubelet_health_port)
    layout = dataclasses.replace(layout, ports=ports, listen=listen_address, bucket=bucket)
    _run(state, lambda _: typer.echo("ready"), layout=layout)


def _placed(layout: Layout, **addresses: str) -> Layout:
    """The layout with services at HOST:PORT."""
    hosts: dict[str, str] = {}
    ports: dict[str, int] = {}
    for name, address in addresses.items():
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise typer.BadParameter(f"--{name.replace('_', '-')}: expected HOST:PORT, got {address!r}")
        hosts[name] = host
        ports[{"api_server": "api", "cache_server": "webhook"}.get(name, name)] = int(port)
    found: Layout = dataclasses.replace(
        layout, ports=dataclasses.replace(layout.ports, **ports), **cast("dict[str, Any]", hosts)
    )
    return found


def _run(state: Path, on_ready: Callable[[dict[str, Any]], None], **options: Any) -> NoReturn:
    """Run a sandbox until a signal; ends the command."""
    configure_logs("sandbox")
    failure: list[SandboxError] = []

    async def service(stop: asyncio.Event) -> None:
        try:
            await run_sandbox(
                state,
                stop,
                on_progress=lambda name: typer.echo(f"started {name}"),
                on_ready=on_ready,
                **options,
            )
        except SandboxError as error:
            failure.append(error)

    status = run(service)
    if failure:
        typer.echo(f"error: {failure[0]}", err=True)
        status = 1
    raise typer.Exit(status)


def _tell(state: Path, description: dict[str, Any]) -> None:
    flag = "" if state == DEFAULT else f" --state {state}"
    address = description["envoy"]["address"]
    typer.echo(
        f"""
kubeconfig   {description["kubeconfig"]}
API server   {description["api_server"]["url"]}
Envoy        {description["envoy"]["url"]}  (reads: gRPC and grpc-web)
store        {description["store"]["address"]}  (gRPC)
logs         {description["state"]}/logs

try next, in another terminal:
  memopod run PIPELINE.yaml -p NAME=VALUE{flag}
  memopod lineage runs --address {address}
  kubectl --kubeconfig {description["kubeconfig"]} get pods

ready"""
    )
