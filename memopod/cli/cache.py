"""`memopod cache`: what can be reused, and what that has saved."""

import asyncio
import json
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cache_server.entries import EntriesUnavailable, Entry, SqlEntries, migrate, open_entries
from cache_server.entries.databases import describe, parse_url
from memopod.cli.release import release

VARIABLE = "MEMOPOD_CACHE_DATABASE"
"""Environment variable with the URL of the cache server's database."""
DEFAULT_STATE = Path(".memopod/sandbox")
"""State folder of `memopod sandbox up` unless told otherwise."""

_SHORT_ID = 8
_TIMEOUT = 10.0
"""Seconds for one question: people wait longer than Pods."""
_ID = re.compile(r"[0-9a-f]{1,32}")
_PIPED_WIDTH = 4096
"""Columns where nobody watches: a row stays on a line, for `grep` and `less -S`."""

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=f"""Look at the entries: the steps that ran, and are reused instead of being run again.

They are read from the cache server's database: --database URL, that of the sandbox of --state DIR,
the environment variable {VARIABLE}, or the sandbox in {DEFAULT_STATE}; the first of these that is given.
A URL with a password belongs into the environment: flags can be read by everybody on a machine.
""",
    epilog="""Examples:

  memopod cache list

  memopod cache list --namespace pipelines --template comp --json

  memopod cache show 3f2a91c0

  memopod cache list --database sqlite:////var/lib/memopod/cache.db

  memopod cache migrate --database postgresql://memopod@db:5432/memopod
""",
)

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help=f"The database: sqlite:///PATH, mysql:// or postgresql://. [env: {VARIABLE}]",
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="State folder of a sandbox: read its entries.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, with every field.")]


app.command("release", epilog="Example: memopod cache release --orphaned --namespace pipelines")(release)


@app.callback()
def cache() -> None:
    """Keeps sub-commands under their names, however few there are."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which database is read; `flags` name it again on a command line."""

    url: str
    flags: str = ""


@app.command("list", epilog="Example: memopod cache list --namespace pipelines --limit 5")
def list_entries(
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Only of this namespace.")
    ] = None,
    template: Annotated[str | None, typer.Option("--template", help="Only of this template.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many are listed at most.")] = 50,
    database: DatabaseOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the entries, those that finished last first."""
    source = find_source(database, state)
    entries = _ask(source, lambda kept: kept.list(namespace, template, limit=limit))
    if as_json:
        _print_json([_document(entry) for entry in entries])
        return
    if not entries:
        filtered = namespace is not None or template is not None
        typer.echo("no entries match" if filtered else "no entries yet")
        following = f"memopod cache list{source.flags}" if filtered else "memopod run PIPELINE.yaml"
        _next(following)
        return
    _print(_table(entries))
    _next(f"memopod cache show {entries[0].id[:_SHORT_ID]}{source.flags}")


@app.command(epilog="Example: memopod cache show 3f2a91c0 --json")
def show(
    entry_id: Annotated[str, typer.Argument(metavar="ID", help="An entry's id, or how it begins.")],
    database: DatabaseOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry: the run that it is of, its outputs, the parts of its key, its uses."""
    if not _ID.fullmatch(entry_id.lower()):
        raise typer.BadParameter(f"expected an id of at most 32 hexadecimal digits, got {entry_id!r}")
    source = find_source(database, state)
    found = _ask(source, lambda kept: kept.list(id_prefix=entry_id.lower(), limit=6))
    if not found:
        _fail(f"no entry's id begins with {entry_id!r}; see `memopod cache list{source.flags}`")
    if len(found) > 1:
        shown = ", ".join(entry.id[: max(_SHORT_ID, len(entry_id) + 4)] for entry in found[:5])
        more = ", ..." if len(found) > 5 else ""
        _fail(f"more than one entry's id begins with {entry_id!r} ({shown}{more}); give more of it")
    if as_json:
        _print_json(_document(found[0]))
        return
    _print(_details(found[0]))
    _next(f"memopod lineage show {shlex.quote(found[0].workflow)}")


@app.command(
    "migrate", epilog="Example: memopod cache migrate --database sqlite:////var/lib/memopod/cache.db"
)
def migrate_database(database: DatabaseOption = None, state: StateOption = None) -> None:
    """Bring the database to this version's schema; the cache server does so too when it starts.

    Safe to repeat, and beside running servers: one process migrates, others wait for it.
    """
    source = find_source(database, state)
    try:
        asyncio.run(migrate(source.url))
        place = describe(source.url)
    except (OSError, ValueError) as error:
        _fail(str(error))
    typer.echo(f"{place} has this version's schema")
    _next(f"memopod cache list{source.flags}")


def find_source(database: str | None, state: Path | None) -> Source:
    """Which database to read, from the options, the environment and the folder one is in.

    Ends the command for options that contradict each other.
    """
    if database and state:
        raise typer.BadParameter("give --database or --state, not both")
    if database:
        return Source(database, f" --database {shlex.quote(_shown(database))}")
    if state:
        return Source(_url(state), f" --state {shlex.quote(str(state))}")
    if from_environment := os.environ.get(VARIABLE):
        return Source(from_environment)
    return Source(_url(DEFAULT_STATE))


def _shown(url: str) -> str:
    """The URL as it may be shown: with *** for a password. What is no URL is reported when it is used."""
    try:
        return parse_url(url).render_as_string()
    except ValueError:
        return "URL"


def _url(state: Path) -> str:
    return f"sqlite:///{state / 'cache.db'}"


def _ask(source: Source, question: Callable[[SqlEntries], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with open_entries(source.url, call_timeout=_TIMEOUT, read_only=True) as kept:
            return await question(kept)

    try:
        return asyncio.run(ask())
    except (OSError, ValueError, EntriesUnavailable) as error:
        _fail(str(error))


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "NAMESPACE", "TEMPLATE", "WORKFLOW", "POD", "FINISHED"):
        table.add_column(column, no_wrap=column in {"ID", "FINISHED"})
    table.add_column("USES", justify="right")
    table.add_column("TIME SAVED", justify="right")
    table.add_column("MAX STALENESS", justify="right")
    for entry in entries:
        table.add_row(
            entry.id[:_SHORT_ID],
            *(Text(name) for name in (entry.namespace, entry.template_name, entry.workflow, entry.pod_name)),
            _time(entry.finished_at),
            str(entry.uses),
            _duration(entry.saved),
            _staleness(entry),
        )
    return table


def _details(entry: Entry) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(entry):
        table.add_row(name, Text(value))
    return table


def _lines(entry: Entry) -> Iterator[tuple[str, str]]:
    yield "id", entry.id
    yield "namespace", entry.namespace
    yield "template", entry.template_name
    yield "workflow", f"{entry.workflow} ({entry.workflow_uid})"
    yield "node", entry.node_id
    yield "pod", f"{entry.pod_name} ({entry.pod_uid})"
    yield "image", entry.image_id
    yield "execution", "not known" if entry.execution_id is None else str(entry.execution_id)
    yield "ran", f"{_time(entry.started_at)}, for {_duration(entry.took)}"
    yield "recorded", _time(entry.recorded_at)
    last = "" if entry.last_used_at is None else f", last {_time(entry.last_used_at)}"
    yield "uses", f"{entry.uses}{last}, saved {_duration(entry.saved)}"
    yield "max staleness", _staleness(entry)
    yield "key", f"{entry.key} (version {entry.key_version})"
    for component, digest in sorted(entry.components.items()):
        yield f"  {component}", digest
    outputs = entry.outputs
    yield "outputs", "" if outputs.parameters or outputs.artifacts or outputs.result is not None else "none"
    for parameter, value in sorted(outputs.parameters.items()):
        yield f"  {parameter}", value
    if outputs.result is not None:
        yield "  result", outputs.result
    for artifact in outputs.artifacts:
        told = [
            *([] if artifact.size is None else [f"{artifact.size} bytes"]),
            *([] if artifact.digest is None else [artifact.digest]),
        ]
        yield f"  {artifact.name}", artifact.location.uri + (f" ({', '.join(told)})" if told else "")


def _document(entry: Entry) -> dict[str, Any]:
    """An entry as JSON; times are RFC 3339 in UTC, durations seconds."""
    return {
        "id": entry.id,
        "namespace": entry.namespace,
        "key": entry.key,
        "key_version": entry.key_version,
        "components": dict(entry.components),
        "template": entry.template_name,
        "workflow": entry.workflow,
        "workflow_uid": entry.workflow_uid,
        "node_id": entry.node_id,
        "pod": entry.pod_name,
        "pod_uid": entry.pod_uid,
        "image_id": entry.image_id,
        "outputs": entry.outputs.to_json(),
        "execution_id": entry.execution_id,
        "started_at": _rfc3339(entry.started_at),
        "finished_at": _rfc3339(entry.finished_at),
        "recorded_at": _rfc3339(entry.recorded_at),
        "last_used_at": None if entry.last_used_at is None else _rfc3339(entry.last_used_at),
        "uses": entry.uses,
        "seconds_saved": entry.saved.total_seconds(),
        "max_staleness_seconds": entry.max_staleness_seconds,
    }


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def _staleness(entry: Entry) -> str:
    if entry.max_staleness_seconds is None:
        return "-"
    return _duration(timedelta(seconds=entry.max_staleness_seconds))


def _duration(length: timedelta) -> str:
    """`0 s`, `1.5 s`, `2 m 5 s`, `3 h 20 m`, `4 d 1 h`: two units at most."""
    seconds = length.total_seconds()
    if seconds < 60:
        return f"{seconds:.3g} s"
    parts: list[str] = []
    rest = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def _print_json(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def _print(answer: RenderableType) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    console.print(answer)


def _next(command: str) -> None:
    """One line that says what could follow; apart from the answer, so that a pipe does not get it."""
    typer.echo(f"next: {command}", err=True)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
