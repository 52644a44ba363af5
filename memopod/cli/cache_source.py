"""Where `memopod cache` finds the entries: a database, or a cache server's API."""

import asyncio
import json
import os
import shlex
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol

import aiohttp
import typer

from cache_server.entries import open_entries
from cache_server.entries.catalog import Catalog, Filter
from cache_server.entries.databases import parse_url
from cache_server.entries.document import entry_document, stats_document
from cache_server.entries.leases import LEASE_SECONDS
from cache_server.entries.migrations import check_schema
from cache_server.entries.retention import Limits, span
from memopod.steps.staleness import parse_duration

DATABASE_VARIABLE = "MEMOPOD_CACHE_DATABASE"
"""Environment variable with the URL of the cache server's database."""
SERVER_VARIABLE, TOKEN_VARIABLE, CA_VARIABLE = (
    "MEMOPOD_CACHE_SERVER",
    "MEMOPOD_CACHE_TOKEN_FILE",
    "MEMOPOD_CACHE_CA_FILE",
)
DEFAULT_STATE = Path(".memopod/sandbox")
"""State folder of `memopod sandbox up` unless told otherwise."""
_CALL_SECONDS = 10.0
"""Seconds for one question to the database: people wait longer than Pods."""
_REQUEST_SECONDS = 60.0

Document = Mapping[str, Any]

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help=f"The database: sqlite:///PATH, mysql:// or postgresql://. [env: {DATABASE_VARIABLE}]",
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="State folder of a sandbox: read its entries.")
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help=f"A cache server's API: https://... [env: {SERVER_VARIABLE}]"
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help=f"File with the token for it. [env: {TOKEN_VARIABLE}]"),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca-file", metavar="FILE", help=f"Authorities to trust for it. [env: {CA_VARIABLE}]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, with every field.")]


class CannotReach(Exception):
    """The entries cannot be asked, or the answer was no. The message is for people."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which database is read; `flags` name it again on a command line."""

    url: str
    flags: str = ""


@dataclass(frozen=True, slots=True)
class ServerSource:
    """Which API is asked, with which token and authorities."""

    url: str
    token_file: Path
    ca_file: Path | None
    flags: str = ""


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
    if from_environment := os.environ.get(DATABASE_VARIABLE):
        return Source(from_environment)
    return Source(_url(DEFAULT_STATE))


def find_any(
    database: str | None,
    state: Path | None,
    server: str | None,
    token_file: Path | None,
    ca_file: Path | None,
) -> Source | ServerSource:
    """As `find_source`; an API comes before the environment's database, a flag before the environment."""
    if server and (database or state):
        raise typer.BadParameter("give --server, --database or --state, not two of them")
    chosen = server or (None if database or state else os.environ.get(SERVER_VARIABLE))
    if not chosen:
        return find_source(database, state)
    token = token_file or _path(TOKEN_VARIABLE)
    authorities = ca_file or _path(CA_VARIABLE)
    if not chosen.startswith("https://"):
        raise typer.BadParameter("--server: expected https://HOST:PORT: a token is sent there")
    if token is None:
        raise typer.BadParameter(f"--server needs --token-file FILE (or {TOKEN_VARIABLE})")
    given = (("--server", server), ("--token-file", token_file), ("--ca-file", ca_file))
    flags = "".join(f" {name} {shlex.quote(str(value))}" for name, value in given if value)
    return ServerSource(chosen.rstrip("/"), token, authorities, flags)


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _shown(url: str) -> str:
    """The URL as it may be shown: with *** for a password. What is no URL is reported when it is used."""
    try:
        return parse_url(url).render_as_string()
    except ValueError:
        return "URL"


def _url(state: Path) -> str:
    return f"sqlite:///{state / 'cache.db'}"


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


@asynccontextmanager
async def open_kept(source: Source | ServerSource, *, write: bool = False) -> AsyncIterator[Kept]:
    """The entries of a source. A database is opened for reading only unless something is to be changed."""
    if isinstance(source, ServerSource):
        async with _session(source) as session:
            yield _ServerKept(session, source)
        return
    if write:
        # What is older stays as it is: its cache server may not know a newer schema.
        await check_schema(source.url)
    async with open_entries(source.url, call_timeout=_CALL_SECONDS, read_only=not write) as entries:
        yield _DatabaseKept(Catalog(entries.database))


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


@asynccontextmanager
async def _session(source: ServerSource) -> AsyncIterator[aiohttp.ClientSession]:
    token = source.token_file.read_text().strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ValueError(f"{source.token_file}: expected a token")
    try:
        context = ssl.create_default_context(cafile=source.ca_file and str(source.ca_file))
    except ssl.SSLError as error:
        raise ValueError(f"{source.ca_file}: expected certificates in PEM") from error
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {token}"},
        connector=aiohttp.TCPConnector(ssl=context),
        timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
        trust_env=True,
    ) as session:
        yield session


class _ServerKept:
    def __init__(self, session: aiohttp.ClientSession, source: ServerSource) -> None:
        self._session = session
        self._url = source.url

    async def page(self, which: Which, *, limit: int, after: str | None = None) -> Document:
        query = [("limit", str(limit)), *(("where", text) for text in which.where)]
        given = (("namespace", which.namespace), ("id", which.id_prefix), ("after", after))
        query += [(name, value) for name, value in given if value]
        return await self._ask("GET", "/v1/entries", params=query)

    async def pin(self, entry_id: str, pinned: bool) -> None:
        await self._ask("PUT", f"/v1/entries/{entry_id}/pin", json={"pinned": pinned})

    async def invalidate(self, which: Which, *, reason: str, dry_run: bool) -> int:
        body = {
            "namespace": which.namespace,
            "id": which.id_prefix,
            "where": list(which.where),
            "reason": reason,
            "dry_run": dry_run,
        }
        return int((await self._ask("POST", "/v1/invalidate", json=body))["invalidated"])

    async def gc(self, limits: Document, *, namespace: str | None, dry_run: bool) -> Mapping[str, int]:
        body = {**limits, "namespace": namespace, "dry_run": dry_run}
        deleted: Mapping[str, int] = (await self._ask("POST", "/v1/gc", json=body))["deleted"]
        return deleted

    async def stats(self, namespace: str | None, *, days: int) -> Sequence[Document]:
        query = {"days": str(days), **({"namespace": namespace} if namespace else {})}
        stats: Sequence[Document] = (await self._ask("GET", "/v1/stats", params=query))["stats"]
        return stats

    async def _ask(self, method: str, path: str, **options: Any) -> Document:
        try:
            async with self._session.request(method, self._url + path, **options) as answer:
                status, text = answer.status, await answer.text()
        except TimeoutError as error:
            raise CannotReach(f"{self._url} did not answer within {_REQUEST_SECONDS:g} s") from error
        except (aiohttp.ClientError, UnicodeDecodeError) as error:
            raise CannotReach(f"cannot reach {self._url}: {error}") from error
        try:
            document: Document = json.loads(text)
            told = document.get("error", "")
        except (ValueError, AttributeError) as error:
            raise CannotReach(f"{self._url} is no cache server's API: it answered {status}") from error
        if status != 200:
            raise CannotReach(f"{self._url}: {told or status}")
        return document
