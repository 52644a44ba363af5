"""`memopod sandbox`: a cluster on this machine."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from memopod.sandbox.errors import SandboxError
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
    configure_logs("sandbox")
    failure: list[SandboxError] = []

    async def service(stop: asyncio.Event) -> None:
        try:
            await run_sandbox(
                state,
                stop,
                control_plane=control_plane,
                on_progress=lambda name: typer.echo(f"started {name}"),
                on_ready=lambda description: _tell(state, description),
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
