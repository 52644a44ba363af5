"""`memopod writer`: how a metadata writer is doing, and the record of what ran before there was one."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from metadata_writer.backfill import Progress as Counts

app = typer.Typer(
    no_args_is_help=True, help="How the metadata writer is doing, and what it can still record."
)

_TIMEOUT = 5.0


@app.command(
    epilog="Example:  kubectl -n memopod port-forward deploy/metadata-writer 9095 & memopod writer status"
)
def status(
    url: str = typer.Option(
        "http://127.0.0.1:9095", "--url", envvar="MEMOPOD_WRITER_URL", help="Where a writer's /status is."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print what the writer says, as JSON."),
) -> None:
    """Lag, queue, quarantine and the last error of a writer. Exits with 1 while a step is in quarantine."""
    console = Console(stderr=False)
    try:
        said = asyncio.run(_ask(url))
    except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
        typer.echo(f"memopod writer status: no writer answers at {url}: {type(error).__name__}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(said, indent=2))
    else:
        _show(console, said)
    raise typer.Exit(1 if said["quarantined"] else 0)


@app.command(
    epilog="Examples:  memopod writer backfill --store localhost:8080\n\n"
    "kubectl get workflows -A -o json > runs.json   (or: argo list -A -o json)\n\n"
    "memopod writer backfill --file runs.json --store localhost:8080"
)
def backfill(
    file: Path | None = typer.Option(
        None, "--file", "-f", help="Exported Workflows (JSON, JSON lines or YAML) instead of a cluster's."
    ),
    store: str = typer.Option(
        "metadata-grpc-service:8080", "--store", help="HOST:PORT of the metadata store."
    ),
    kubeconfig: Path | None = typer.Option(None, "--kubeconfig", help="Empty: $KUBECONFIG, ~/.kube/config."),
    namespace: str = typer.Option("", "--namespace", "-n", help="One namespace; empty for all."),
    as_json: bool = typer.Option(False, "--json", help="Print the counts as JSON."),
) -> None:
    """Record workflows that have ended, from their status. Can be stopped and begun again at any time.

    Exits with 1 if a workflow could not be read or a step not recorded; it stops no other.
    """
    from memopod.kube import ApiError, ConfigurationError
    from memopod.mlmd import StoreError
    from metadata_writer.backfill import Unreadable

    try:
        counts = asyncio.run(_backfill(file, store, str(kubeconfig) if kubeconfig else None, namespace))
    except (Unreadable, OSError, ApiError, ConfigurationError, StoreError) as error:
        typer.echo(f"memopod writer backfill: {error}", err=True)
        typer.echo("what was recorded stays; run it again to go on", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; run it again to go on", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({name: getattr(counts, name) for name in counts.__slots__}))
        raise typer.Exit(1 if counts.unreadable or counts.refused else 0)
    typer.echo(
        f"{counts.workflows} workflows, {counts.steps} steps: {counts.written} recorded, "
        f"{counts.steps - counts.written} were there"
    )
    for number, what in (
        (counts.running, "still run: a metadata writer records them"),
        (counts.offloaded, "keep their nodes in Argo's own database, which memopod does not read"),
    ):
        if number:
            typer.echo(f"{number} workflows {what}")
    for name in counts.unreadable:
        typer.echo(f"memopod writer backfill: {name}: its status cannot be read", err=True)
    for line in counts.refused:
        typer.echo(f"memopod writer backfill: {line}", err=True)
    if counts.unreadable or counts.refused:
        raise typer.Exit(1)
    typer.echo("next: memopod lineage runs")


@app.command(epilog="Example:  memopod writer release   # after the writer was removed")
def release(
    kubeconfig: Path | None = typer.Option(None, "--kubeconfig", help="Empty: $KUBECONFIG, ~/.kube/config."),
    namespace: str = typer.Option("", "--namespace", "-n", help="One namespace; empty for all."),
) -> None:
    """Take the writer's finalizer off all Pods, so that those that are deleted can go.

    For a writer that ran with --finalizer=on and is gone; one that runs takes it off itself. Exits with 1
    if a Pod could not be changed.
    """
    from memopod.kube import ApiError, ConfigurationError

    try:
        released, failed = asyncio.run(_release(str(kubeconfig) if kubeconfig else None, namespace or None))
    except (ApiError, ConfigurationError) as error:
        typer.echo(f"memopod writer release: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{released} Pods let go")
    for line in failed:
        typer.echo(f"memopod writer release: {line}", err=True)
    raise typer.Exit(1 if failed else 0)


async def _release(kubeconfig: str | None, namespace: str | None) -> tuple[int, list[str]]:
    from memopod.kube import PODS, ApiError, Client
    from metadata_writer.finalizer import change, holds
    from metadata_writer.finalizer import release as without

    released, failed = 0, []
    async with Client.from_kubeconfig(kubeconfig, user_agent="memopod-release") as client:
        for pod in (await client.list(PODS, namespace=namespace))["items"]:
            if not holds(pod):
                continue
            try:
                released += await change(client, pod, without)
            except ApiError as error:
                failed.append(str(error))
    return released, failed


async def _ask(url: str) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/status") as answer:
        answer.raise_for_status()
        said: dict[str, Any] = await answer.json()
        return said


def _show(console: Console, said: Mapping[str, Any]) -> None:
    lag = said["lag_seconds"]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in (
        ("store", said["store"]),
        ("shards led", f"{len(said['shards']['led'])} of {said['shards']['of']}"),
        ("queue", str(said["queue"])),
        ("waiting longest", f"{said['oldest_waiting_seconds']:.1f} s"),
        ("lag p50, p99", "-" if lag["p50"] is None else f"{lag['p50']:.3f} s, {lag['p99']:.3f} s"),
        ("failing", str(said["failing"])),
        ("quarantine", str(said["quarantined"])),
        ("unreadable workflows", str(said["unreadable_workflows"])),
        ("last error", said["last_error"]["error"] if said["last_error"] else "-"),
    ):
        table.add_row(name, value)
    console.print(table, highlight=False)
    if said["quarantine"]:
        steps = Table(box=None, pad_edge=False)
        for column in ("namespace", "step", "failures", "next try", "error"):
            steps.add_column(column)
        for step in said["quarantine"]:
            steps.add_row(
                step["namespace"], step["step"], str(step["failures"]),
                f"{step['next_in_seconds']:.0f} s", step["error"],
            )  # fmt: skip
        console.print()
        console.print(steps, highlight=False)


async def _backfill(file: Path | None, store: str, kubeconfig: str | None, namespace: str) -> "Counts":
    from memopod.kube import Client
    from memopod.mlmd import StoreClient
    from metadata_writer.backfill import backfill, from_cluster, from_file

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("workflows", total=None)

        def told(counts: "Counts") -> None:
            steps = f"workflows ({counts.steps} steps, {counts.written} recorded)"
            bar.update(task, completed=counts.workflows, description=steps)

        async with StoreClient(store, timeout=30.0) as client:
            if file is not None:
                workflows = list(from_file(file))
                bar.update(task, total=len(workflows))
                return await backfill(_each(workflows), client, told)
            async with Client.from_kubeconfig(kubeconfig, user_agent="memopod-backfill") as cluster:
                return await backfill(from_cluster(cluster, namespace or None), client, told)


async def _each(workflows: list[Mapping[str, Any]]) -> AsyncIterator[Mapping[str, Any]]:
    for workflow in workflows:
        yield workflow
