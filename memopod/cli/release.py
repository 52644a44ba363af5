"""`memopod cache release`: let held Pods go, whatever became of the cache server."""

import asyncio
import json
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from cache_server.finish import is_held
from cache_server.janitor import JANITOR_GRACE
from cache_server.sweeper import FINISHED, RELEASED, TAKEN, is_overdue, let_go
from memopod.cli.cluster_options import KubeconfigOption
from memopod.cli.ending import fail
from memopod.kube import PODS, ApiError, Client, ConfigurationError, NotFound

_CLAIM_WAIT = 2.0
"""Seconds between claiming a Pod and releasing it: a write of a leader that is under way shows by then."""
_AT_ONCE = 64
"""Calls. No Pod holds one while its claim waits: a thousand take little longer than one."""
_TRIES = 3
"""How often a Pod is tried that changes under our hands: a leader may be deciding for it right now."""
_SHOWN = 20

Pod = Mapping[str, Any]


def release(
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Only Pods of this namespace.")
    ] = None,
    orphaned: Annotated[
        bool,
        typer.Option("--orphaned", help="Only Pods that are held beyond their time: what the janitor does."),
    ] = False,
    kubeconfig: KubeconfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON: what was done with each Pod.")] = False,
) -> None:
    """Finish the held Pods that must be finished, and lift memopod's gate from all others.

    A Pod whose outputs Argo has already been told is finished with them; every other one runs as it was
    written. Gates of others stay. Safe beside running cache servers and janitors, and to repeat. Takes a
    little more than two seconds. Exit status 1 if a Pod could not be let go.
    """
    try:
        done = asyncio.run(_release(kubeconfig, namespace, orphaned=orphaned, quiet=as_json))
    except ConfigurationError as error:
        fail(f"{error}; give --kubeconfig FILE")
    except ApiError as error:
        fail(f"the API server does not answer as it should: {error}")
    if as_json:
        keys = ("namespace", "pod", "action")
        typer.echo(json.dumps([dict(zip(keys, line, strict=True)) for line in done], indent=2))
    else:
        _show(done)
    if any(action not in (FINISHED, RELEASED, "gone") for _, _, action in done):
        raise typer.Exit(1)


async def _release(
    kubeconfig: Path | None, namespace: str | None, *, orphaned: bool, quiet: bool
) -> list[tuple[str, str, str]]:
    """Namespace, name and what was done, of each Pod that was held."""
    path = str(kubeconfig) if kubeconfig else None
    async with Client.from_kubeconfig(path, user_agent="memopod-release") as client:
        now, grace = datetime.now(UTC), timedelta(seconds=JANITOR_GRACE)
        listed = (await client.list(PODS, namespace=namespace))["items"]
        pods = [pod for pod in listed if (is_overdue(pod, now, grace) if orphaned else is_held(pod))]
        return await let_go_all(client, pods, console=Console(stderr=True, quiet=quiet))


async def let_go_all(client: Client, pods: Sequence[Pod], *, console: Console) -> list[tuple[str, str, str]]:
    """Finish or release held Pods: namespace, name and what was done, of each."""
    slots = asyncio.Semaphore(_AT_ONCE)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("letting go", total=len(pods))

        async def one(pod: Pod) -> tuple[str, str, str]:
            action = await _let_go(client, pod, slots)
            progress.advance(bar)
            return pod["metadata"]["namespace"], pod["metadata"]["name"], action

        return await asyncio.gather(*(one(pod) for pod in pods))


async def _let_go(client: Client, pod: Pod, slots: asyncio.Semaphore) -> str:
    identity = f"release-{socket.gethostname()}-{os.getpid()}"
    metadata = pod["metadata"]
    try:
        for _ in range(_TRIES):
            action = await let_go(
                client, pod, identity=identity, claim_wait=_CLAIM_WAIT, reason="by-hand", slots=slots
            )
            if action != TAKEN:
                return action
            pod = await client.get(PODS, metadata["name"], namespace=metadata["namespace"])
            if pod["metadata"]["uid"] != metadata["uid"]:
                return "gone"
            if not is_held(pod):
                finished = (pod.get("status") or {}).get("phase") == "Succeeded"
                return FINISHED if finished else RELEASED
    except NotFound:
        return "gone"
    except ApiError as error:
        return f"failed: {error.reason}"
    return "failed: it changed again and again"


def _show(done: list[tuple[str, str, str]]) -> None:
    if not done:
        typer.echo("no Pod is held")
        return
    counts = Counter(action.partition(":")[0] for _, _, action in done)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAMESPACE", "POD", "DONE"):
        table.add_column(column)
    failed_first = sorted(done, key=lambda line: (not line[2].startswith("failed"), line))
    for place, name, action in failed_first[:_SHOWN]:
        table.add_row(Text(place), Text(name), Text(action, style="red" if "failed" in action else ""))
    Console().print(table)
    if len(done) > _SHOWN:
        typer.echo(f"and {len(done) - _SHOWN} more")
    typer.echo(", ".join(f"{count} {action}" for action, count in sorted(counts.items())))
    typer.echo("next: kubectl get pods --all-namespaces -l memopod.io/step=held", err=True)
