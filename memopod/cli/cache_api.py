"""The entries as a cache server's API tells them."""

import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from memopod.cli.cache_kept import CannotReach, Document, Which
from memopod.cli.cache_options import ServerSource

_REQUEST_SECONDS = 60.0


@asynccontextmanager
async def open_api(source: ServerSource) -> AsyncIterator["ServerKept"]:
    """A session with the API. Raises OSError or ValueError for a token or authorities that cannot be read."""
    async with _session(source) as session:
        yield ServerKept(session, source)


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


class ServerKept:
    """See `Kept`."""

    def __init__(self, session: aiohttp.ClientSession, source: ServerSource) -> None:
        self._session = session
        self._url = source.url

    async def page(self, which: Which, *, limit: int, after: str | None = None) -> Document:
        """See `Kept.page`."""
        query = [("limit", str(limit)), *(("where", text) for text in which.where)]
        given = (("namespace", which.namespace), ("id", which.id_prefix), ("after", after))
        query += [(name, value) for name, value in given if value]
        return await self._ask("GET", "/v1/entries", params=query)

    async def pin(self, entry_id: str, pinned: bool) -> None:
        """See `Kept.pin`."""
        await self._ask("PUT", f"/v1/entries/{entry_id}/pin", json={"pinned": pinned})

    async def invalidate(self, which: Which, *, reason: str, dry_run: bool) -> int:
        """See `Kept.invalidate`."""
        body = {
            "namespace": which.namespace,
            "id": which.id_prefix,
            "where": list(which.where),
            "reason": reason,
            "dry_run": dry_run,
        }
        return int((await self._ask("POST", "/v1/invalidate", json=body))["invalidated"])

    async def gc(self, limits: Document, *, namespace: str | None, dry_run: bool) -> Mapping[str, int]:
        """See `Kept.gc`."""
        body = {**limits, "namespace": namespace, "dry_run": dry_run}
        deleted: Mapping[str, int] = (await self._ask("POST", "/v1/gc", json=body))["deleted"]
        return deleted

    async def stats(self, namespace: str | None, *, days: int) -> Sequence[Document]:
        """See `Kept.stats`."""
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
