"""Questions to the entries, as the commands of `memopod cache` ask them, and how they fail."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from cache_server.entries import EntriesUnavailable
from cache_server.entries.catalog import EXPLAINED
from memopod.cli.cache_kept import CannotReach, Document, Kept, Which
from memopod.cli.cache_options import ServerSource, Source
from memopod.cli.cache_source import open_kept
from memopod.cli.cache_tables import SHORT_ID
from memopod.cli.ending import fail

PAGE = 500
"""Entries that are asked for at once."""
_ID = re.compile(r"[0-9a-f]{1,32}")

T = TypeVar("T")

NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="Only of this namespace.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="How many are listed at most.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say how many it would be.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="An entry's id, or how it begins.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="FIELD=VALUE", help=f"FIELD: {EXPLAINED}. Repeatable."),
]


def ask(source: Source | ServerSource, question: Callable[[Kept], Awaitable[T]], *, write: bool = False) -> T:
    """Ask the entries of a source; ends the command when there is no answer."""

    async def asked() -> T:
        async with open_kept(source, write=write) as kept:
            return await question(kept)

    try:
        return asyncio.run(asked())
    except (OSError, ValueError, EntriesUnavailable, CannotReach) as error:
        fail(str(error))


async def first(kept: Kept, which: Which, limit: int) -> list[Document]:
    """The first entries of those that are meant."""
    found: list[Document] = []
    after: str | None = None
    while len(found) < limit:
        page = await kept.page(which, limit=min(limit - len(found), PAGE), after=after)
        found += page["entries"]
        after = page["after"]
        if after is None:
            break
    return found


async def one(kept: Kept, entry_id: str, namespace: str | None, source: Source | ServerSource) -> Document:
    """The entry that is meant. Raises CannotReach if there is none, or more than one."""
    if not _ID.fullmatch(entry_id.lower()):
        raise typer.BadParameter(f"expected an id of at most 32 hexadecimal digits, got {entry_id!r}")
    which = Which(namespace=namespace, id_prefix=entry_id.lower())
    found = await first(kept, which, 6)
    if not found:
        raise CannotReach(f"no entry's id begins with {entry_id!r}; see `memopod cache list{source.flags}`")
    if len(found) > 1:
        shown = ", ".join(entry["id"][: max(SHORT_ID, len(entry_id) + 4)] for entry in found[:5])
        more = ", ..." if len(found) > 5 else ""
        raise CannotReach(
            f"more than one entry's id begins with {entry_id!r} ({shown}{more}); give more of it"
        )
    return found[0]


def count(number: int) -> str:
    """How many, in words."""
    return "1 entry" if number == 1 else f"{number} entries"


def tell_next(command: str) -> None:
    """One line that says what could follow; apart from the answer, so that a pipe does not get it."""
    typer.echo(f"next: {command}", err=True)
