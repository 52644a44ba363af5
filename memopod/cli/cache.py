"""`memopod cache`: what can be reused, what that has saved, and what must not be reused any more."""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from cache_server.entries import EntriesUnavailable, migrate
from cache_server.entries.catalog import EXPLAINED
from cache_server.entries.databases import describe
from memopod.cli.cache_source import (
    DATABASE_VARIABLE,
    DEFAULT_STATE,
    SERVER_VARIABLE,
    CannotReach,
    CaOption,
    DatabaseOption,
    Document,
    JsonOption,
    Kept,
    ServerOption,
    ServerSource,
    Source,
    StateOption,
    TokenOption,
    Which,
    find_any,
    find_source,
    open_kept,
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
from memopod.cli.release import release

_ID = re.compile(r"[0-9a-f]{1,32}")
_PAGE = 500

T = TypeVar("T")

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

NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="Only of this namespace.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="How many are listed at most.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say how many it would be.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="An entry's id, or how it begins.")]


@app.command("list", epilog="Example: memopod cache list --namespace pipelines --limit 5")
def list_entries(
    namespace: NamespaceOption = None,
    template: Annotated[str | None, typer.Option("--template", help="Only of this template.")] = None,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the entries, those that finished last first."""
    source = find_any(database, state, server, token_file, ca_file)
    which = Which(namespace=namespace, where=[f"template={template}"] if template is not None else [])
    _list(source, which, limit, as_json=as_json)


@app.command(epilog="Example: memopod cache find template=train component.image=3f2a91 --json")
def find(
    pairs: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help=f"FIELD: {EXPLAINED}.")],
    namespace: NamespaceOption = None,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the entries of which all of this is true, exactly; those that finished last first."""
    source = find_any(database, state, server, token_file, ca_file)
    _list(source, Which(namespace=namespace, where=pairs), limit, as_json=as_json)


@app.command(epilog="Example: memopod cache show 3f2a91c0 --json")
def show(
    entry_id: IdArgument,
    namespace: NamespaceOption = None,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry: the run that it is of, its outputs, the parts of its key, its uses."""
    source = find_any(database, state, server, token_file, ca_file)
    entry = _ask(source, lambda kept: _one(kept, entry_id, namespace, source))
    if as_json:
        print_json(entry)
        return
    print_table(details(entry))
    workflow = entry["workflow"]
    _next(
        f"memopod lineage show {shlex.quote(workflow)}" if workflow else f"memopod cache list{source.flags}"
    )


@app.command(epilog="Example: memopod cache stats --namespace pipelines --days 7")
def stats(
    namespace: NamespaceOption = None,
    days: Annotated[int, typer.Option("--days", min=1, max=400, help="Today, and the days before.")] = 30,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hits, misses by reason and time saved, by namespace and template."""
    source = find_any(database, state, server, token_file, ca_file)
    found = _ask(source, lambda kept: kept.stats(namespace, days=days))
    if as_json:
        print_json(list(found))
        return
    if not found:
        typer.echo("no entries and no decisions yet")
        _next("memopod run PIPELINE.yaml")
        return
    print_table(stats_table(found))
    saved = duration(sum(each["seconds_saved"] for each in found))
    typer.echo(f"{saved} saved in {days} days", err=True)
    _next(f"memopod cache list{source.flags}")


@app.command(epilog="Example: memopod cache invalidate --namespace pipelines --where template=train")
def invalidate(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Entries, or how their ids begin.")
    ] = None,
    namespace: NamespaceOption = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="FIELD=VALUE", help=f"FIELD: {EXPLAINED}. Repeatable."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries there are.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="For the server's log.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take entries out of reuse for good, pinned ones too: their steps run again, once.

    When the command has ended, no look-up finds one of them any more, in no replica.
    """
    source = find_any(database, state, server, token_file, ca_file)
    pairs = where or []
    if sum(map(bool, (ids, namespace or pairs, everything))) != 1:
        raise typer.BadParameter("give IDs, or --namespace and --where, or --all")
    if ids:
        done = _ask(source, lambda kept: _invalidate_ids(kept, ids, reason, source, dry_run), write=True)
    else:
        which = Which(namespace=namespace, where=pairs)
        if not yes and not dry_run:
            many = _ask(source, lambda kept: kept.invalidate(which, reason="", dry_run=True), write=True)
            _confirm(f"Take {_count(many)} out of reuse?")
        done = _ask(source, lambda kept: kept.invalidate(which, reason=reason, dry_run=dry_run), write=True)
    if as_json:
        print_json({"invalidated": done, "dry_run": dry_run})
        return
    typer.echo(f"{_count(done)} would be taken" if dry_run else f"{_count(done)} taken out of reuse")
    _next(f"memopod cache list{source.flags}")


@app.command(epilog="Example: memopod cache pin 3f2a91c0")
def pin(
    entry_id: IdArgument,
    off: Annotated[bool, typer.Option("--off", help="Let it go by age and number again.")] = False,
    namespace: NamespaceOption = None,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep an entry whatever its age, and however many there are."""
    source = find_any(database, state, server, token_file, ca_file)

    async def work(kept: Kept) -> Document:
        entry = await _one(kept, entry_id, namespace, source)
        await kept.pin(entry["id"], not off)
        return {"id": entry["id"], "pinned": not off}

    done = _ask(source, work, write=True)
    if as_json:
        print_json(done)
        return
    typer.echo(f"{done['id'][:SHORT_ID]} is {'no longer pinned' if off else 'pinned'}")
    _next(f"memopod cache show {done['id'][:SHORT_ID]}{source.flags}")


@app.command(epilog="Example: memopod cache export --namespace pipelines --output entries.jsonl")
def export(
    namespace: NamespaceOption = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="FIELD=VALUE", help=f"FIELD: {EXPLAINED}. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write there; default: standard output."),
    ] = None,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON array instead of a line for each.")
    ] = False,
) -> None:
    """Write all entries as JSON, a line each, newest first. A file appears when it is complete."""
    source = find_any(database, state, server, token_file, ca_file)
    which = Which(namespace=namespace, where=where or [])
    if output is None:
        _ask(source, lambda kept: _export(kept, which, sys.stdout.write, as_json=as_json))
        return
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("w") as file:
            written = _ask(source, lambda kept: _export(kept, which, file.write, as_json=as_json))
        part.replace(output)
    except OSError as error:
        _fail(str(error))
    finally:
        part.unlink(missing_ok=True)
    typer.echo(f"{_count(written)} in {output}", err=True)


@app.command(epilog="Example: memopod cache gc --max-idle P30D --dry-run")
def gc(
    max_age: Annotated[
        str, typer.Option("--max-age", metavar="DURATION", help="Since the step finished.")
    ] = "",
    max_idle: Annotated[
        str, typer.Option("--max-idle", metavar="DURATION", help="Since it was recorded or last used.")
    ] = "",
    max_number: Annotated[
        int | None, typer.Option("--max-number", min=0, help="Entries that a namespace keeps.")
    ] = None,
    namespace: NamespaceOption = None,
    dry_run: DryRunOption = False,
    database: DatabaseOption = None,
    state: StateOption = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
    ca_file: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete entries by age, idleness and number now; the cache server does so by its own settings.

    Durations are ISO 8601: P30D, PT12H. Pinned entries stay.
    """
    source = find_any(database, state, server, token_file, ca_file)
    if not max_age and not max_idle and max_number is None:
        raise typer.BadParameter("give --max-age, --max-idle or --max-number")
    limits = {"age": max_age, "idle": max_idle, "number": max_number}
    deleted = _ask(source, lambda kept: kept.gc(limits, namespace=namespace, dry_run=dry_run), write=True)
    if as_json:
        print_json({"deleted": dict(deleted), "dry_run": dry_run})
        return
    told = ", ".join(f"{number} by {reason}" for reason, number in deleted.items() if number)
    verb = "would be deleted" if dry_run else "deleted"
    typer.echo(f"{_count(sum(deleted.values()))} {verb}" + (f" ({told})" if told else ""))
    _next(f"memopod cache stats{source.flags}")


@app.command(
    "import", epilog="Example: MEMOPOD_KUBEFLOW_DATABASE=mysql://... memopod cache import -n pipelines"
)
def import_entries(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Where they are found; Kubeflow's table tells none.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="URL", envvar="MEMOPOD_KUBEFLOW_DATABASE",
            help="Kubeflow's database: mysql://USER:PASSWORD@HOST:PORT/cachedb.",
        ),
    ] = None,
    database: DatabaseOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Import the entries of Kubeflow's cache server (the table execution_caches); its database is only read.

    May be ended at any time, and goes on when it is called again; called later, it takes what is new. The
    entries are found in placeholder mode (memopod cache-server --strategy=placeholder), by steps of this
    namespace whose Kubeflow fingerprint is theirs.
    """
    from memopod.cli.cache_import import import_all

    if not source:
        raise typer.BadParameter("give --from URL (or MEMOPOD_KUBEFLOW_DATABASE)")
    target = find_source(database, state)
    try:
        done = asyncio.run(import_all(source, target.url, namespace, quiet=as_json))
    except (OSError, ValueError, EntriesUnavailable) as error:
        _fail(str(error))
    if as_json:
        print_json(done)
        return
    typer.echo(f"{_count(done['imported'])} imported of {done['rows']} rows")
    if done["replaced"]:
        typer.echo(f"  deleted: {done['replaced']}, imported by an earlier version and found no more")
    for reason, number in sorted(done["left_out"].items(), key=lambda item: -item[1]):
        typer.echo(f"  left out: {number}, {reason}")
    _next(f"memopod cache list --namespace {shlex.quote(namespace)}{target.flags}")


@app.command(
    "migrate", epilog="Example: memopod cache migrate --database sqlite:////var/lib/memopod/cache.db"
)
def migrate_database(
    database: DatabaseOption = None, state: StateOption = None, as_json: JsonOption = False
) -> None:
    """Bring the database to this version's schema; the cache server does so too when it starts.

    Safe to repeat, and beside running servers: one process migrates, others wait for it.
    """
    source = find_source(database, state)
    try:
        asyncio.run(migrate(source.url))
        place = describe(source.url)
    except (OSError, ValueError) as error:
        _fail(str(error))
    if as_json:
        print_json({"database": place, "migrated": True})
        return
    typer.echo(f"{place} has this version's schema")
    _next(f"memopod cache list{source.flags}")


def _list(source: Source | ServerSource, which: Which, limit: int, *, as_json: bool) -> None:
    entries = _ask(source, lambda kept: _first(kept, which, limit))
    if as_json:
        print_json(entries)
        return
    if not entries:
        filtered = which.namespace is not None or which.where
        typer.echo("no entries match" if filtered else "no entries yet")
        _next(f"memopod cache list{source.flags}" if filtered else "memopod run PIPELINE.yaml")
        return
    print_table(entries_table(entries))
    _next(f"memopod cache show {entries[0]['id'][:SHORT_ID]}{source.flags}")


async def _first(kept: Kept, which: Which, limit: int) -> list[Document]:
    found: list[Document] = []
    after: str | None = None
    while len(found) < limit:
        page = await kept.page(which, limit=min(limit - len(found), _PAGE), after=after)
        found += page["entries"]
        after = page["after"]
        if after is None:
            break
    return found


async def _one(kept: Kept, entry_id: str, namespace: str | None, source: Source | ServerSource) -> Document:
    """The entry that is meant. Raises CannotReach if there is none, or more than one."""
    if not _ID.fullmatch(entry_id.lower()):
        raise typer.BadParameter(f"expected an id of at most 32 hexadecimal digits, got {entry_id!r}")
    which = Which(namespace=namespace, id_prefix=entry_id.lower())
    found = await _first(kept, which, 6)
    if not found:
        raise CannotReach(f"no entry's id begins with {entry_id!r}; see `memopod cache list{source.flags}`")
    if len(found) > 1:
        shown = ", ".join(entry["id"][: max(SHORT_ID, len(entry_id) + 4)] for entry in found[:5])
        more = ", ..." if len(found) > 5 else ""
        raise CannotReach(
            f"more than one entry's id begins with {entry_id!r} ({shown}{more}); give more of it"
        )
    return found[0]


async def _invalidate_ids(
    kept: Kept, ids: list[str], reason: str, source: Source | ServerSource, dry_run: bool
) -> int:
    # All are looked up first: a mistake in one of them takes none back.
    found = {entry["id"]: entry for entry in [await _one(kept, each, None, source) for each in ids]}
    taken = 0
    for entry in found.values():
        which = Which(namespace=entry["namespace"], id_prefix=entry["id"])
        taken += await kept.invalidate(which, reason=reason, dry_run=dry_run)
    return taken


async def _export(kept: Kept, which: Which, write: Callable[[str], Any], *, as_json: bool) -> int:
    written = 0
    after: str | None = None
    if as_json:
        write("[")
    while True:
        page = await kept.page(which, limit=_PAGE, after=after)
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


def _ask(
    source: Source | ServerSource, question: Callable[[Kept], Awaitable[T]], *, write: bool = False
) -> T:
    async def ask() -> T:
        async with open_kept(source, write=write) as kept:
            return await question(kept)

    try:
        return asyncio.run(ask())
    except (OSError, ValueError, EntriesUnavailable, CannotReach) as error:
        _fail(str(error))


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Nobody is here to answer: give --yes")
    typer.confirm(question, abort=True)


def _count(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def _next(command: str) -> None:
    """One line that says what could follow; apart from the answer, so that a pipe does not get it."""
    typer.echo(f"next: {command}", err=True)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
