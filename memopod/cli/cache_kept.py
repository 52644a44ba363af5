"""What the commands ask of the entries and do to them, wherever those are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Document = Mapping[str, Any]


class CannotReach(Exception):
    """The entries cannot be asked, or the answer was no. The message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """The entries that a command is about; see `Filter`."""

    namespace: str | None = None
    id_prefix: str = ""
    where: Sequence[str] = ()


class Kept(Protocol):
    """The entries, wherever they are.

    Every call raises CannotReach, EntriesUnavailable, OSError or ValueError.
    """

    async def page(self, which: Which, *, limit: int, after: str | None = None) -> Document:
        """`{"entries": [...], "after": ... or None}`, newest first."""

    async def pin(self, entry_id: str, pinned: bool) -> None:
        """Keep an entry from retention, or no more."""

    async def invalidate(self, which: Which, *, reason: str, dry_run: bool) -> int:
        """Take entries out of reuse; when it returns, none of them is found any more.

        `reason` goes into the log of the server, if there is one.
        """

    async def gc(self, limits: Document, *, namespace: str | None, dry_run: bool) -> Mapping[str, int]:
        """Delete what is beyond `{"age", "idle": durations, "number": or None}`."""

    async def stats(self, namespace: str | None, *, days: int) -> Sequence[Document]:
        """By namespace and template."""
