"""`memopod store`: housekeeping of the metadata store's database."""

import asyncio
import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import select

from cache_server.entries.databases import create_engine
from cache_server.entries.schema import entries
from memopod.cli.ending import fail
from memopod.steps.staleness import parse_duration
from metadata_store.prune import Deleted, Plan, plan
from metadata_store.tables import CannotPrune, open_records

app = typer.Typer(no_args_is_help=True, help="Look after the metadata store's database.")

_ENTRIES_TIMEOUT = 60.0


@app.callback()
def store() -> None:
    """Keeps sub-commands under their names, however few there are."""


_EXAMPLES = """Examples:

  memopod store prune --older-than P90D

  memopod store prune --older-than P90D --yes
"""


@app.command(epilog=_EXAMPLES)
def prune(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Age since the last change: P90D, P1Y.")
    ],
    database: Annotated[
        str,
        typer.Option(
            "--database", metavar="URL", envvar="MEMOPOD_METADATA_STORE_DATABASE", help="The store's."
        ),
    ],
    cache_database: Annotated[
        str | None,
        typer.Option(
            "--cache-database",
            metavar="URL",
            envvar="MEMOPOD_CACHE_DATABASE",
            help="The cache server's: what its entries came from is kept.",
        ),
    ] = None,
    without_cache: Annotated[bool, typer.Option("--without-cache", help="There is no cache server.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only tell what would be.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Delete old executions, and what belongs to them alone.

    Kept is what is younger, not finished, what a cache entry came from, the whole run of anything kept, and
    whatever made or lent what a kept run used. Without --yes nothing is changed.
    """  # fmt: skip
    seconds = parse_duration(older_than)
    if seconds is None or seconds <= 0:
        fail(f"--older-than: expected a duration such as P90D, got {older_than!r}", status=2)
    if (cache_database is None) != without_cache:
        fail("give the cache server's database with --cache-database, or say --without-cache", status=2)
    before = int((time.time() - seconds) * 1000)
    try:
        chosen, gone = asyncio.run(_prune(database, cache_database, before, yes=yes, quiet=as_json))
    except (CannotPrune, OSError, ValueError) as error:
        fail(str(error), status=2)
    _show(chosen, gone, as_json=as_json)


async def _prune(
    url: str, cache_url: str | None, before: int, *, yes: bool, quiet: bool
) -> tuple[Plan, Deleted | None]:
    gone = None
    ids, external_ids = await sources(cache_url) if cache_url is not None else (set(), set())
    async with open_records(url) as records:
        chosen = plan(await records.read(), before=before, ids=ids, external_ids=external_ids)
        if yes:
            with Progress(
                TextColumn("deleting executions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                console=Console(stderr=True), disable=quiet,
            ) as progress:  # fmt: skip
                bar = progress.add_task("", total=len(chosen.executions))
                async for gone in records.delete(chosen, before=before):
                    progress.update(bar, completed=gone.done)
    return chosen, gone


async def sources(url: str) -> tuple[set[int], set[str]]:
    """The executions that entries came from: their ids, and their external ids as the writer makes them."""
    engine = create_engine(url, busy_timeout=_ENTRIES_TIMEOUT, read_only=True)
    ids, external_ids = set(), set()
    try:
        async with engine.connect() as connection:
            columns = (entries.c.execution_id, entries.c.workflow_uid, entries.c.node_id)
            for execution, workflow, node in await connection.execute(select(*columns)):
                external_ids.add(f"{workflow}/{node}")
                if execution is not None:
                    ids.add(execution)
    finally:
        await engine.dispose()
    return ids, external_ids


def _show(chosen: Plan, gone: Deleted | None, *, as_json: bool) -> None:
    deleted = gone is not None
    counts = {
        "executions": len(chosen.executions), "artifacts": len(chosen.artifacts), "runs": len(chosen.runs),
    }  # fmt: skip
    if gone is not None:
        counts = {"executions": gone.executions, "artifacts": gone.artifacts, "runs": gone.runs}
    if as_json:
        typer.echo(json.dumps({"deleted": deleted, **counts, "kept": chosen.kept}))
        return
    table = Table(title="deleted" if deleted else "would be deleted", title_justify="left")
    for name in counts:
        table.add_column(name, justify="right")
    table.add_row(*(f"{count:,}" for count in counts.values()))
    console = Console()
    console.print(table)
    for reason, count in chosen.kept.items():
        console.print(f"kept: {count:,} executions ({reason})", highlight=False)
    if not deleted and chosen.executions:
        console.print("nothing was changed; --yes deletes", highlight=False)
