"""The commands of `memopod cache` that change something."""

import asyncio
import shlex
import sys
from typing import Annotated

import typer

from cache_server.entries import EntriesUnavailable, migrate
from cache_server.entries.databases import describe
from memopod.cli.cache_asking import (
    DryRunOption,
    IdArgument,
    NamespaceOption,
    WhereOption,
    ask,
    count,
    one,
    tell_next,
)
from memopod.cli.cache_import import import_all
from memopod.cli.cache_kept import Document, Kept, Which
from memopod.cli.cache_options import JsonOption, ServerSource, Source, reads_database, reads_entries
from memopod.cli.cache_tables import SHORT_ID, print_json
from memopod.cli.ending import fail


def register(app: typer.Typer) -> None:
    """Add them to the command line."""
    for name, command, example in (
        ("invalidate", invalidate, "memopod cache invalidate --namespace pipelines --where template=train"),
        ("pin", pin, "memopod cache pin 3f2a91c0"),
        ("gc", gc, "memopod cache gc --max-idle P30D --dry-run"),
        ("import", import_entries, "MEMOPOD_KUBEFLOW_DATABASE=mysql://... memopod cache import -n pipelines"),
        ("migrate", migrate_database, "memopod cache migrate --database sqlite:////var/lib/memopod/cache.db"),
    ):
        app.command(name, epilog=f"Example: {example}")(command)


@reads_entries
def invalidate(
    source: Source | ServerSource,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Entries, or how their ids begin.")
    ] = None,
    namespace: NamespaceOption = None,
    where: WhereOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries there are.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="For the server's log.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take entries out of reuse for good, pinned ones too: their steps run again, once.

    When the command has ended, no look-up finds one of them any more, in no replica.
    """
    pairs = where or []
    if sum(map(bool, (ids, namespace or pairs, everything))) != 1:
        raise typer.BadParameter("give IDs, or --namespace and --where, or --all")
    if ids:
        done = ask(source, lambda kept: _invalidate_ids(kept, ids, reason, source, dry_run), write=True)
    else:
        which = Which(namespace=namespace, where=pairs)
        if not yes and not dry_run:
            many = ask(source, lambda kept: kept.invalidate(which, reason="", dry_run=True), write=True)
            _confirm(f"Take {count(many)} out of reuse?")
        done = ask(source, lambda kept: kept.invalidate(which, reason=reason, dry_run=dry_run), write=True)
    if as_json:
        print_json({"invalidated": done, "dry_run": dry_run})
        return
    typer.echo(f"{count(done)} would be taken" if dry_run else f"{count(done)} taken out of reuse")
    tell_next(f"memopod cache list{source.flags}")


@reads_entries
def pin(
    source: Source | ServerSource,
    entry_id: IdArgument,
    off: Annotated[bool, typer.Option("--off", help="Let it go by age and number again.")] = False,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep an entry whatever its age, and however many there are."""

    async def work(kept: Kept) -> Document:
        entry = await one(kept, entry_id, namespace, source)
        await kept.pin(entry["id"], not off)
        return {"id": entry["id"], "pinned": not off}

    done = ask(source, work, write=True)
    if as_json:
        print_json(done)
        return
    typer.echo(f"{done['id'][:SHORT_ID]} is {'no longer pinned' if off else 'pinned'}")
    tell_next(f"memopod cache show {done['id'][:SHORT_ID]}{source.flags}")


@reads_entries
def gc(
    source: Source | ServerSource,
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
    as_json: JsonOption = False,
) -> None:
    """Delete entries by age, idleness and number now; the cache server does so by its own settings.

    Durations are ISO 8601: P30D, PT12H. Pinned entries stay.
    """
    if not max_age and not max_idle and max_number is None:
        raise typer.BadParameter("give --max-age, --max-idle or --max-number")
    limits = {"age": max_age, "idle": max_idle, "number": max_number}
    deleted = ask(source, lambda kept: kept.gc(limits, namespace=namespace, dry_run=dry_run), write=True)
    if as_json:
        print_json({"deleted": dict(deleted), "dry_run": dry_run})
        return
    told = ", ".join(f"{number} by {reason}" for reason, number in deleted.items() if number)
    verb = "would be deleted" if dry_run else "deleted"
    typer.echo(f"{count(sum(deleted.values()))} {verb}" + (f" ({told})" if told else ""))
    tell_next(f"memopod cache stats{source.flags}")


@reads_database
def import_entries(
    source: Source,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Where they are found; Kubeflow's table tells none.")
    ],
    kubeflow: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="URL", envvar="MEMOPOD_KUBEFLOW_DATABASE",
            help="Kubeflow's database: mysql://USER:PASSWORD@HOST:PORT/cachedb.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Import the entries of Kubeflow's cache server (the table execution_caches); its database is only read.

    May be ended at any time, and goes on when it is called again; called later, it takes what is new. The
    entries are found in placeholder mode (memopod cache-server --strategy=placeholder), by steps of this
    namespace whose Kubeflow fingerprint is theirs.
    """
    if not kubeflow:
        raise typer.BadParameter("give --from URL (or MEMOPOD_KUBEFLOW_DATABASE)")
    try:
        done = asyncio.run(import_all(kubeflow, source.url, namespace, quiet=as_json))
    except (OSError, ValueError, EntriesUnavailable) as error:
        fail(str(error))
    if as_json:
        print_json(done)
        return
    typer.echo(f"{count(done['imported'])} imported of {done['rows']} rows")
    if done["replaced"]:
        typer.echo(f"  deleted: {done['replaced']}, imported by an earlier version and found no more")
    for reason, number in sorted(done["left_out"].items(), key=lambda item: -item[1]):
        typer.echo(f"  left out: {number}, {reason}")
    tell_next(f"memopod cache list --namespace {shlex.quote(namespace)}{source.flags}")


@reads_database
def migrate_database(source: Source, as_json: JsonOption = False) -> None:
    """Bring the database to this version's schema; the cache server does so too when it starts.

    Safe to repeat, and beside running servers: one process migrates, others wait for it.
    """
    try:
        asyncio.run(migrate(source.url))
        place = describe(source.url)
    except (OSError, ValueError) as error:
        fail(str(error))
    if as_json:
        print_json({"database": place, "migrated": True})
        return
    typer.echo(f"{place} has this version's schema")
    tell_next(f"memopod cache list{source.flags}")


async def _invalidate_ids(
    kept: Kept, ids: list[str], reason: str, source: Source | ServerSource, dry_run: bool
) -> int:
    # All are looked up first: a mistake in one of them takes none back.
    found = {entry["id"]: entry for entry in [await one(kept, each, None, source) for each in ids]}
    taken = 0
    for entry in found.values():
        which = Which(namespace=entry["namespace"], id_prefix=entry["id"])
        taken += await kept.invalidate(which, reason=reason, dry_run=dry_run)
    return taken


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Nobody is here to answer: give --yes")
    typer.confirm(question, abort=True)
