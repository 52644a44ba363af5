"""`memopod cache`: what can be reused, what that has saved, and what must not be reused any more."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cache_server.entries.catalog import EXPLAINED
from memopod.cli import cache_orders
from memopod.cli.cache_asking import (
    PAGE,
    IdArgument,
    LimitOption,
    NamespaceOption,
    WhereOption,
    ask,
    count,
    first,
    one,
    tell_next,
)
from memopod.cli.cache_kept import Kept, Which
from memopod.cli.cache_options import (
    DATABASE_VARIABLE,
    DEFAULT_STATE,
    SERVER_VARIABLE,
    JsonOption,
    ServerSource,
    Source,
    reads_entries,
)
from memopod.cli.cache_tables import (
    SHORT_ID,
    details,
    duration,
    entries_table,
    print_json,
    print_table,
    stats_table,
)
from memopod.cli.ending import fail
from memopod.cli.release import release

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=f"""Look at the entries: the steps that ran, and are reused instead of being run again.

They are asked for by a cache server's API (--server URL, or {SERVER_VARIABLE}), or in its database:
--database URL, that of the sandbox of --state DIR, the environment variable {DATABASE_VARIABLE}, or the
sandbox in {DEFAULT_STATE}; the first of these that is given. A URL with a password belongs into the
environment: flags can be read by everybody on a machine.
""",
    epilog="""Examples:

  memopod cache list

  memopod cache find template=train parameter.loss=0.1 --namespace pipelines

  memopod cache stats --days 7

  memopod cache invalidate 3f2a91c0

  memopod cache list --server https://cache-server.memopod:8444 --token-file token --ca-file ca.crt

  memopod cache import --namespace pipelines

  memopod cache release --orphaned
""",
)
app.command("release", epilog="Example: memopod cache release --orphaned --namespace pipelines")(release)
cache_orders.register(app)


@app.command("list", epilog="Example: memopod cache list --namespace pipelines --limit 5")
@reads_entries
def list_entries(
    source: Source | ServerSource,
    namespace: NamespaceOption = None,
    template: Annotated[str | None, typer.Option("--template", help="Only of this template.")] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List the entries, those that finished last first."""
    which = Which(namespace=namespace, where=[f"template={template}"] if template is not None else [])
    _list(source, which, limit, as_json=as_json)


@app.command(epilog="Example: memopod cache find template=train component.image=3f2a91 --json")
@reads_entries
def find(
    source: Source | ServerSource,
    pairs: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help=f"FIELD: {EXPLAINED}.")],
    namespace: NamespaceOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """Find the entries of which all of this is true, exactly; those that finished last first."""
    _list(source, Which(namespace=namespace, where=pairs), limit, as_json=as_json)


@app.command(epilog="Example: memopod cache show 3f2a91c0 --json")
@reads_entries
def show(
    source: Source | ServerSource,
    entry_id: IdArgument,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry: the run that it is of, its outputs, the parts of its key, its uses."""
    entry = ask(source, lambda kept: one(kept, entry_id, namespace, source))
    if as_json:
        print_json(entry)
        return
    print_table(details(entry))
    workflow = entry["workflow"]
    tell_next(
        f"memopod lineage show {shlex.quote(workflow)}" if workflow else f"memopod cache list{source.flags}"
    )


@app.command(epilog="Example: memopod cache stats --namespace pipelines --days 7")
@reads_entries
def stats(
    source: Source | ServerSource,
    namespace: NamespaceOption = None,
    days: Annotated[int, typer.Option("--days", min=1, max=400, help="Today, and the days before.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """Hits, misses by reason and time saved, by namespace and template."""
    found = ask(source, lambda kept: kept.stats(namespace, days=days))
    if as_json:
        print_json(list(found))
        return
    if not found:
        typer.echo("no entries and no decisions yet")
        tell_next("memopod run PIPELINE.yaml")
        return
    print_table(stats_table(found))
    saved = duration(sum(each["seconds_saved"] for each in found))
    typer.echo(f"{saved} saved in {days} days", err=True)
    tell_next(f"memopod cache list{source.flags}")


@app.command(epilog="Example: memopod cache export --namespace pipelines --output entries.jsonl")
@reads_entries
def export(
    source: Source | ServerSource,
    namespace: NamespaceOption = None,
    where: WhereOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there; default: standard output."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON array instead of a line for each.")
    ] = False,
) -> None:
    """Write all entries as JSON, a line each, newest first. A file appears when it is complete."""
    which = Which(namespace=namespace, where=where or [])
    if output is None:
        ask(source, lambda kept: _export(kept, which, sys.stdout.write, as_json=as_json))
        return
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("w") as file:
            written = ask(source, lambda kept: _export(kept, which, file.write, as_json=as_json))
        part.replace(output)
    except OSError as error:
        fail(str(error))
    finally:
        part.unlink(missing_ok=True)
    typer.echo(f"{count(written)} in {output}", err=True)


def _list(source: Source | ServerSource, which: Which, limit: int, *, as_json: bool) -> None:
    entries = ask(source, lambda kept: first(kept, which, limit))
    if as_json:
        print_json(entries)
        return
    if not entries:
        filtered = which.namespace is not None or which.where
        typer.echo("no entries match" if filtered else "no entries yet")
        tell_next(f"memopod cache list{source.flags}" if filtered else "memopod run PIPELINE.yaml")
        return
    print_table(entries_table(entries))
    tell_next(f"memopod cache show {entries[0]['id'][:SHORT_ID]}{source.flags}")


async def _export(kept: Kept, which: Which, write: Callable[[str], Any], *, as_json: bool) -> int:
    written = 0
    after: str | None = None
    if as_json:
        write("[")
    while True:
        page = await kept.page(which, limit=PAGE, after=after)
        for entry in page["entries"]:
            separator = (",\n" if written else "\n") if as_json else ""
            write(separator + json.dumps(entry, ensure_ascii=False) + ("" if as_json else "\n"))
            written += 1
        after = page["after"]
        if after is None:
            break
    if as_json:
        write("\n]\n")
    return written
