"""`memopod cache import`: Kubeflow's entries, with a bar that shows how far it is."""

import sys
from datetime import UTC, datetime
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache_server.entries import open_entries
from cache_server.entries.importing import Progress as Far
from cache_server.entries.importing import import_rows
from cache_server.entries.kubeflow import open_source

_CALL_SECONDS = 60.0
_TELL_EVERY = 10_000


async def import_all(source_url: str, url: str, namespace: str, *, quiet: bool) -> dict[str, Any]:
    """Import into the database at `url`; returns what this call did.

    Raises OSError, ValueError and EntriesUnavailable.
    """
    far: Far | None = None
    async with open_source(source_url) as source, open_entries(url, call_timeout=_CALL_SECONDS) as entries:
        with _Bar(quiet) as bar:
            async for far in import_rows(
                source, entries.database, namespace=namespace, now=datetime.now(UTC)
            ):
                bar.show(far)
    if far is None:
        raise ValueError("nothing was imported")
    return {
        "rows": far.total,
        "imported": far.imported,
        "replaced": far.replaced,
        "left_out": dict(far.left_out),
        "resumed": far.resumed,
    }


class _Bar:
    """A bar on a terminal, now and then a line elsewhere; on standard error."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self._console, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("import", total=None)
        self._told = 0
        self._plain = not quiet and not self._console.is_terminal

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._bar.stop()

    def show(self, far: Far) -> None:
        """Show how far it is."""
        self._bar.update(self._task, total=far.total, completed=far.looked_at)
        if self._plain and (far.looked_at >= self._told + _TELL_EVERY or far.looked_at == far.total):
            if far.looked_at != self._told:
                print(f"{far.looked_at} of {far.total} rows", file=sys.stderr, flush=True)
            self._told = far.looked_at
