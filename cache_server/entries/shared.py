"""The layer in Redis, which all replicas share, and the channel on which they tell of changes.

Redis is trusted as the database is: who can write to it can mislead reuse. Nothing that it loses or
keeps too long does any harm: a reading is filed under its token, and says itself what it is of.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cache_server.entries.entry import Entry
from cache_server.entries.layer import Place, Reading

_PREFIX = "memopod:entry:1"
"""The number is that of the value's format."""
_CHANNEL = "memopod:changed"
_KEEP_SECONDS = 600
_LARGEST = 1 << 20
"""Bytes: a longer value is left to the database."""
_CONNECTIONS = 16
_SILENCE_SECONDS = 5.0
"""A subscription that is silent for so long is asked whether it still stands."""


@dataclass(frozen=True, slots=True)
class _Value:
    token: str
    entry: Entry


_DECODER = msgspec.json.Decoder(_Value)


class RedisLayer:
    """Entries in Redis at `url` (`redis://`, `rediss://` or `unix://`).

    `timeout` (seconds) bounds each step of a call. Raises ValueError for another URL; nothing is
    connected before it is used.
    """

    name = "redis"

    def __init__(self, url: str, *, timeout: float = 0.05) -> None:
        check_redis_url(url)
        once: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_connect_timeout": max(timeout, 1.0)}
        pool = BlockingConnectionPool.from_url(
            url, max_connections=_CONNECTIONS, timeout=timeout, socket_timeout=timeout, **once
        )
        self._client = Redis(connection_pool=pool)
        self._listening = Redis.from_url(url, socket_timeout=2 * _SILENCE_SECONDS, **once)

    async def look(self, place: Place) -> Reading | None:
        """See `Layer.look`."""
        if place.token is None:
            return None
        value = await self._client.get(_name(place))
        if value is None:
            return None
        found = _DECODER.decode(value)
        if (found.token, found.entry.namespace, found.entry.key) != (place.token, place.namespace, place.key):
            raise ValueError("a value in Redis is not of the place that it was found at")
        return Reading(found.entry, found.token)

    async def keep(self, place: Place, reading: Reading) -> None:
        """See `Layer.keep`. That there is no entry is not kept here."""
        if reading.token is None or reading.entry is None:
            return
        value = msgspec.json.encode(_Value(reading.token, reading.entry))
        if len(value) <= _LARGEST:
            name = _name(Place(place.namespace, place.key, reading.token))
            await self._client.set(name, value, ex=_KEEP_SECONDS)

    async def tell(self, namespace: str) -> None:
        """Tell all replicas that the namespace's token has changed."""
        await self._client.publish(_CHANNEL, namespace)

    async def changes(self) -> AsyncIterator[str | None]:
        """The namespaces that somebody tells of; None first, once the subscription stands.

        Raises RedisError, OSError or TimeoutError when the subscription is lost.
        """
        async with self._listening.pubsub() as subscription:
            await subscription.subscribe(_CHANNEL)
            asked = False
            while True:
                message = await subscription.get_message(timeout=_SILENCE_SECONDS)
                if message is None:
                    if asked:
                        raise TimeoutError("the subscription does not answer")
                    await subscription.ping()
                    asked = True
                    continue
                asked = False
                if message["type"] == "subscribe":
                    yield None
                elif message["type"] == "message":
                    yield message["data"].decode(errors="replace")

    async def close(self) -> None:
        """Close every connection."""
        for client in (self._client, self._listening):
            try:
                await client.aclose(close_connection_pool=True)
            except (TimeoutError, RedisError, OSError):
                continue


def check_redis_url(url: str) -> None:
    """Raise ValueError unless it is a URL of Redis; the message does not repeat it."""
    expected = "redis: expected redis://HOST:PORT/NUMBER, rediss://... or unix:///PATH"
    try:
        parts = urlsplit(url)
        named = parts.path if parts.scheme == "unix" else parts.hostname
        _ = parts.port
    except ValueError:
        raise ValueError(f"{expected}, got no URL") from None
    if parts.scheme not in {"redis", "rediss", "unix"} or not named:
        raise ValueError(
            f"{expected}, got the scheme {parts.scheme!r}" if named else f"{expected}, got no host"
        )


def _name(place: Place) -> str:
    return f"{_PREFIX}:{place.token}:{place.namespace}:{place.key}"
