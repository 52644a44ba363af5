"""`memopod install check`: whether memopod can do its work in a cluster, and what to do where it cannot."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memopod.cli.cluster_options import KubeconfigOption
from memopod.cli.ending import fail
from memopod.cli.install_checks import FAILED, OK, SKIPPED, UNKNOWN, Check, examine
from memopod.kube import ApiError, Client, ConfigurationError

_STYLES = {OK: "green", FAILED: "bold red", SKIPPED: "dim", UNKNOWN: "yellow"}
_EPILOG = """Examples:

  memopod install check

  memopod install check --namespace kubeflow --json
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look after an installation.")


@app.callback()
def install() -> None:
    """Keeps sub-commands under their names, however few there are."""


@app.command(epilog=_EPILOG)
def check(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Where memopod is installed.")
    ] = "memopod",
    pipelines: Annotated[
        str | None,
        typer.Option(
            "--pipelines", metavar="NAMESPACE",
            help="Where workflows run: a Pod is asked for there, and not made. "
            "Default: the namespace that memopod serves, else `default`.",
        ),
    ] = None,
    kubeconfig: KubeconfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:  # fmt: skip
    """Ask a cluster whether memopod can work in it. Nothing is changed. Takes a few seconds.

    Needs an account that may look at everything, and impersonate (cluster-admin). Exit status 1 if a check
    failed; a check that could not be made (unknown), or that hangs on another, does not count.
    """
    try:
        checks = asyncio.run(_examine(kubeconfig, namespace, pipelines))
    except ConfigurationError as error:
        fail(f"{error}; give --kubeconfig FILE", status=2)
    except ApiError as error:
        fail(f"the API server does not answer as it should: {error}", status=2)
    failed = [found for found in checks if found.status == FAILED]
    if as_json:
        body = {"ok": not failed, "checks": [dataclasses.asdict(found) for found in checks]}
        typer.echo(json.dumps(body, indent=2))
    else:
        _show(checks, failed)
    raise typer.Exit(1 if failed else 0)


async def _examine(kubeconfig: Path | None, namespace: str, pipelines: str | None) -> list[Check]:
    path = str(kubeconfig) if kubeconfig else None
    async with Client.from_kubeconfig(path, user_agent="memopod-install-check") as client:
        return await examine(client, path, namespace, pipelines)


def _show(checks: list[Check], failed: list[Check]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("CHECK", "STATUS", "FOUND"):
        table.add_column(column)
    for found in checks:
        table.add_row(found.name, Text(found.status, style=_STYLES[found.status]), Text(found.found))
    console = Console()
    console.print(table)
    for found in checks:
        if found.advice:
            console.print()
            console.print(Text(f"{found.name}: ", style=_STYLES[found.status]), Text(found.advice), sep="")
    console.print()
    if failed:
        console.print(f"{len(failed)} of {len(checks)} checks failed", highlight=False)
    else:
        console.print("nothing failed; next: run a workflow twice, then memopod cache stats", highlight=False)
