"""Opens the entries that the options name: a database, or a cache server's API."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from cache_server.entries import open_entries
from cache_server.entries.candidates import Earlier, InDatabase
from cache_server.entries.catalog import Catalog, Filter
from cache_server.entries.document import entry_document, stats_document
from cache_server.entries.leases import LEASE_SECONDS
from cache_server.entries.migrations import check_schema
from cache_server.entries.retention import Limits, span
from memopod.cli.cache_api import open_api
from memopod.cli.cache_earlier import FromApi
from memopod.cli.cache_kept import CannotReach, Document, Kept, Which
from memopod.cli.cache_options import ServerSource, Source
from memopod.steps.staleness import parse_duration

_CALL_SECONDS = 10.0
"""Seconds for one question to the database: people wait longer than Pods."""


@asynccontextmanager
async def open_kept(source: Source | ServerSource, *, write: bool = False) -> AsyncIterator[Kept]:
    """The entries of a source. A database is opened for reading only unless something is to be changed."""
    if isinstance(source, ServerSource):
        async with open_api(source) as api:
            yield api
        return
    if write:
        # What is older stays as it is: its cache server may not know a newer schema.
        await check_schema(source.url)
    async with open_entries(source.url, call_timeout=_CALL_SECONDS, read_only=not write) as entries:
        yield _DatabaseKept(Catalog(entries.database))


@asynccontextmanager
async def open_earlier(source: Source | ServerSource) -> AsyncIterator[Earlier]:
    """The entries of a source, to compare a step with."""
    if isinstance(source, ServerSource):
        async with open_api(source) as api:
            yield FromApi(api)
        return
    async with open_entries(source.url, call_timeout=_CALL_SECONDS, read_only=True) as entries:
        yield InDatabase(entries.database)


class _DatabaseKept:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def page(self, which: Which, *, limit: int, after: str | None = None) -> Document:
        page = await self._catalog.page(_filter(which), limit=limit, after=after)
        return {"entries": [entry_document(entry) for entry in page.entries], "after": page.after}

    async def pin(self, entry_id: str, pinned: bool) -> None:
        if not await self._catalog.pin(entry_id, pinned):
            raise CannotReach("the entry is gone")

    async def invalidate(self, which: Which, *, reason: str, dry_run: bool) -> int:  # noqa: ARG002
        gone = await self._catalog.invalidate(_filter(which), dry_run=dry_run)
        if gone and not dry_run:
            await asyncio.sleep(LEASE_SECONDS)
        return gone

    async def gc(self, limits: Document, *, namespace: str | None, dry_run: bool) -> Mapping[str, int]:
        kept = Limits(
            age=_duration("--max-age", limits["age"]),
            idle=_duration("--max-idle", limits["idle"]),
            number=limits["number"],
        )
        return await self._catalog.gc(kept, namespace=namespace, dry_run=dry_run)

    async def stats(self, namespace: str | None, *, days: int) -> Sequence[Document]:
        return [stats_document(each) for each in await self._catalog.stats(namespace, days=days)]


def _filter(which: Which) -> Filter:
    return Filter.parse(which.where, namespace=which.namespace, id_prefix=which.id_prefix)


def _duration(flag: str, text: str) -> timedelta | None:
    if not text:
        return None
    seconds = parse_duration(text)
    if seconds is None or seconds < 0:
        raise ValueError(f"{flag}: expected an ISO 8601 duration such as P30D, got {text!r}")
    return span(seconds)
