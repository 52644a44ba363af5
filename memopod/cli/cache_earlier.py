"""The entries that a step is compared with, by way of a cache server's API."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from cache_server.entries import Entry
from cache_server.entries.candidates import MOST, Candidate, candidate_of
from cache_server.entries.document import read_entry
from memopod.cli.cache_kept import CannotReach, Kept, Which

_PAGE = 300
_MOST_LOOKED_AT = 10_000
"""Entries of a template that are looked through for those before a time."""


class FromApi:
    """See `Earlier`. Raises CannotReach too."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def of_template(
        self, namespace: str, template: str, *, before: datetime | None = None, limit: int = MOST
    ) -> Sequence[Candidate]:
        """See `Earlier.of_template`."""
        found: list[Candidate] = []
        async for entry in self._all(Which(namespace=namespace, where=[f"template={template}"])):
            if before is None or entry.finished_at < before:
                found.append(candidate_of(entry))
                if len(found) == limit:
                    break
        return found

    async def of_key(self, key: str, *, namespace: str | None = None) -> Sequence[Candidate]:
        """See `Earlier.of_key`."""
        return await self._first(Which(namespace=namespace, where=[f"key={key}"]))

    async def of_pod(self, namespace: str, pod: str) -> Sequence[Candidate]:
        """See `Earlier.of_pod`."""
        return await self._first(Which(namespace=namespace, where=[f"pod={pod}"]))

    async def entry(self, namespace: str, entry_id: str) -> Entry | None:
        """See `Earlier.entry`."""
        page = await self._kept.page(Which(namespace=namespace, id_prefix=entry_id), limit=1)
        return next(iter(_entries(page["entries"])), None)

    async def _first(self, which: Which) -> Sequence[Candidate]:
        page = await self._kept.page(which, limit=10)
        return [candidate_of(entry) for entry in _entries(page["entries"])]

    async def _all(self, which: Which) -> AsyncIterator[Entry]:
        after: str | None = None
        for _ in range(_MOST_LOOKED_AT // _PAGE):
            page = await self._kept.page(which, limit=_PAGE, after=after)
            for entry in _entries(page["entries"]):
                yield entry
            after = page["after"]
            if after is None:
                return


def _entries(documents: Sequence[dict[str, object]]) -> list[Entry]:
    try:
        return [read_entry(document) for document in documents]
    except (KeyError, TypeError, ValueError) as error:
        raise CannotReach("the server's entries are not of this version's form") from error
