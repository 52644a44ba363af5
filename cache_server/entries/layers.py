"""Entries with layers of memory above the database: fast, and never wrong.

SQL is the truth. Memory (this process's) and Redis (every replica's, optional) remember what it said.

**What must hold**: an entry that was taken back (its outputs are gone, somebody invalidated it, it was
deleted for its age) or replaced by a newer success must not be reused. Memory of any kind works against
that, and every way to tell the rememberers can fail: a message gets lost, a replica hangs, a slow reader
writes what it read before the change.

**How it holds**: each namespace has a token in the database, a random text that changes in the very
transaction that takes back or replaces an entry. A reading is made with one statement, of the entry
and the token together, and is filed under that token. It is served only to a look-up that knows the token
to be the namespace's now. A process may rely on a token for one second (`LEASE_SECONDS`) counted from
before it asked the database; then the next look-up of the namespace goes to the database. So:

- one second after the commit no look-up that begins is answered with the old entry, in no process,
  whatever else fails. `memopod cache invalidate` waits for that second before it says that it is done;
- *a slow read that is written to memory or Redis after the change*: it is filed under the old token,
  which nobody asks for any more;
- *two writers*, or a writer that dies between database and Redis: the token changes with the commit or
  not at all. Nothing has to be deleted from anywhere;
- *a replica that lost its subscription*, or hangs: messages only shorten the second. When a subscription
  stands (again), all tokens are forgotten;
- *Redis restarted, restored from an old snapshot, failed over, shared with another installation*:
  tokens are random, so what is found under one is what its database said with it;
- *a database restored from a backup*: its tokens are those of the entries that it holds. (Rows that are
  changed by hand are another matter: memory keeps readings for a minute, Redis for ten.)
- *look-ups in flight are shared* only with those that begin within the lease of the first, and never
  across a change that this process knows of;
- *an answer of Redis to another question* (a connection that was left in the middle of something): a value
  says its token, namespace and key, and is refused if they are not those asked for;
- *that there is no entry* is remembered for a second in memory, and dropped by this process's own
  recording: for the others it hides a fresh entry for that second, which is a miss.

A found entry's `uses`, `last_used_at` and `pinned` may be older than the database's: no decision asks
for them.

**When a layer is slow or dead** it is skipped, counted (`memopod_entries_lookups_total`), and after three
failures in a row left alone for a while (`Breaker`). When the database is, look-ups end with
EntriesUnavailable, at once while its breaker is open, and steps run: without the database nobody can tell
that an entry still stands. Nothing but EntriesUnavailable gets out of `LayeredEntries.find`.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import Counter, Gauge

from cache_server.entries.breaker import Breaker
from cache_server.entries.entry import EntriesUnavailable, Entry
from cache_server.entries.layer import Layer, Place, Reading
from cache_server.entries.leases import Leases
from cache_server.entries.memory import MemoryLayer
from cache_server.entries.rows import Unreadable
from cache_server.entries.sql import SqlEntries, open_entries
from memopod.steps.locations import Location

if TYPE_CHECKING:
    from cache_server.entries.shared import RedisLayer

_log = structlog.get_logger()
_LOOKUPS = Counter(
    "memopod_entries_lookups_total",
    "What each layer answered: entry, none, unknown, slow, error, or skipped (its breaker is open).",
    ["layer", "result"],
)
_counter = cache(_LOOKUPS.labels)
_SUBSCRIBED = Gauge("memopod_entries_subscribed", "1 while Redis tells this replica of changes.")

_BACKGROUND = 64
"""Writes to Redis under way at most; what comes on top of them is not written."""
_RESUBSCRIBE_SECONDS = 0.1, 5.0
"""Pause before a lost subscription is renewed: the first, and the longest."""


class LayeredEntries:
    """`Entries` with memory above them; made by `open_layered`.

    `timeout` (seconds) is the deadline of a whole look-up, `share` that of Redis within it.
    """

    def __init__(
        self, sql: SqlEntries, memory: MemoryLayer, redis: "RedisLayer | None" = None,
        *, timeout: float = 2.0, share: float = 0.05, leases: Leases | None = None,
    ) -> None:  # fmt: skip
        self.sql = sql
        self._memory = memory
        self._redis = redis
        self._above: Sequence[Layer] = [memory, *([] if redis is None else [redis])]
        self._breakers = {layer.name: Breaker() for layer in (*self._above, sql)}
        self._timeout = timeout
        self._share = share
        self._leases = leases or Leases()
        self._flights: dict[tuple[str, str, float], tuple[float, asyncio.Task[Entry | None]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        sql.database.on_change(self._changed)

    async def find(self, namespace: str, key: str) -> Entry | None:
        """See `Entries.find`. Raises EntriesUnavailable and nothing else, within the deadline."""
        recalled = self._recall(Place(namespace, key, self._leases.token(namespace)))
        if recalled is not None:
            return recalled.entry
        flight = self._join(namespace, key)
        try:
            # The look-up goes on for others when this caller is cancelled.
            async with asyncio.timeout(self._timeout):
                return await asyncio.shield(flight)
        except asyncio.CancelledError:
            if not flight.cancelled():
                raise
            raise EntriesUnavailable("entries: find: closed") from None
        except TimeoutError as error:
            raise EntriesUnavailable(f"entries: find: no answer within {self._timeout:g} s") from error

    def _recall(self, place: Place) -> Reading | None:
        """What memory knows, without the task and the deadline that asking somebody else needs."""
        try:
            reading = self._memory.recall(place)
        except Exception:  # noqa: BLE001 (the look-up asks it again as a layer, and counts the failure)
            return None
        if reading is not None:
            _counter(self._memory.name, "none" if reading.entry is None else "entry").inc()
        return reading

    def _join(self, namespace: str, key: str) -> "asyncio.Task[Entry | None]":
        now = self._leases.clock()
        which = namespace, key, self._leases.epoch(namespace)
        begun, flight = self._flights.get(which, (0.0, None))
        if flight is not None and now - begun < self._leases.seconds:
            return flight
        flight = asyncio.create_task(self._look_up(namespace, key), name="entries:look-up")
        self._flights[which] = now, flight
        flight.add_done_callback(lambda ended: self._landed(which, ended))
        return flight

    def _landed(self, which: tuple[str, str, float], ended: "asyncio.Task[Entry | None]") -> None:
        if self._flights.get(which, (0.0, None))[1] is ended:
            del self._flights[which]
        if not ended.cancelled():
            ended.exception()  # those who wait are told; there may be none left

    async def _look_up(self, namespace: str, key: str) -> Entry | None:
        place = Place(namespace, key, self._leases.token(namespace))
        passed: list[Layer] = []
        reading = None
        for layer in self._above:
            reading = None if place.token is None else await self._ask(layer, place, self._share)
            if reading is not None:
                break
            passed.append(layer)
        if reading is None:
            reading = await self._ask_sql(place)
        for layer in passed:
            if layer is self._memory:
                await layer.keep(place, reading)
            elif reading.entry is not None:
                self._start(self._keep(layer, place, reading), "entries:keep")
        return reading.entry

    async def _ask_sql(self, place: Place) -> Reading:
        asked_at = self._leases.clock()
        reading = await self._ask(self.sql, place, self._timeout)
        if reading is None:
            raise EntriesUnavailable("entries: find: the database does not answer")
        self._leases.learn(place.namespace, reading.token, asked_at=asked_at)
        return reading

    async def _ask(self, layer: Layer, place: Place, seconds: float) -> Reading | None:
        """What the layer knows; None too when it does not answer, which is counted."""
        breaker = self._breakers[layer.name]
        if not breaker.allows():
            _counter(layer.name, "skipped").inc()
            return None
        try:
            async with asyncio.timeout(seconds):
                reading = await layer.look(place)
        except Unreadable:
            # The database answers well; only this row does not.
            breaker.succeeded()
            _counter(layer.name, "error").inc()
            raise
        except Exception as error:  # noqa: BLE001 (whatever a layer fails with, the next one is asked)
            self._failed(layer, error)
            return None
        breaker.succeeded()
        told = "unknown" if reading is None else "none" if reading.entry is None else "entry"
        _counter(layer.name, told).inc()
        return reading

    def _failed(self, layer: Layer, error: Exception) -> None:
        _counter(layer.name, "slow" if isinstance(error, TimeoutError) else "error").inc()
        if self._breakers[layer.name].failed():
            cause = str(error) if isinstance(error, EntriesUnavailable) else type(error).__name__
            _log.warning("a layer of entries is left alone for a while", layer=layer.name, cause=cause)

    async def _keep(self, layer: Layer, place: Place, reading: Reading) -> None:
        breaker = self._breakers[layer.name]
        if breaker.open:
            return
        try:
            async with asyncio.timeout(self._share * 4):
                await layer.keep(place, reading)
        except Exception as error:  # noqa: BLE001 (what is not remembered is read again)
            self._failed(layer, error)

    async def put(self, entry: Entry) -> bool:
        """See `Entries.put`."""
        try:
            return await self.sql.put(entry)
        finally:
            self._memory.drop(entry.namespace, entry.key)

    async def last_key(self, namespace: str) -> str | None:
        """See `Entries.last_key`. Not from memory."""
        return await self.sql.last_key(namespace)

    async def get(self, entry_id: str) -> Entry | None:
        """See `Entries.get`."""
        return await self.sql.get(entry_id)

    async def used(self, entry_id: str, at: datetime) -> None:
        """See `Entries.used`."""
        await self.sql.used(entry_id, at)

    async def retire(self, entry_id: str, reason: str) -> bool:
        """See `Entries.retire`. Other replicas may find the entry for `LEASE_SECONDS` more at most."""
        return await self.sql.retire(entry_id, reason)

    async def recorded(self, pod_uid: str) -> bool:
        """See `Entries.recorded`."""
        return await self.sql.recorded(pod_uid)

    async def list(
        self, namespace: str | None = None, template: str | None = None,
        *, id_prefix: str = "", limit: int = 100,
    ) -> Sequence[Entry]:  # fmt: skip
        """See `Entries.list`."""
        return await self.sql.list(namespace, template, id_prefix=id_prefix, limit=limit)

    async def producer(self, namespace: str, location: Location) -> Entry | None:
        """See `Entries.producer`. Never from memory: keys rest on its answer."""
        return await self.sql.producer(namespace, location)

    def _changed(self, namespace: str | None) -> None:
        """A token was changed by this process, or may have been (None: any of them)."""
        self.forget(namespace)
        if self._redis is not None and namespace is not None:
            self._start(self._tell(self._redis, namespace), "entries:tell")

    def forget(self, namespace: str | None) -> None:
        """Ask the database before anything that is remembered of the namespace (None: of all) is used."""
        if namespace is None:
            self._leases.forget_all()
        else:
            self._leases.forget(namespace)

    async def _tell(self, redis: "RedisLayer", namespace: str) -> None:
        try:
            async with asyncio.timeout(self._share * 20):
                await redis.tell(namespace)
        except Exception as error:  # noqa: BLE001 (whatever it fails with)
            # The others learn of it when their lease runs out.
            _log.info("replicas were not told of a change", cause=type(error).__name__)

    async def listen(self) -> None:
        """Follow what other replicas tell, until cancelled. Nothing but speed depends on it."""
        if self._redis is None:
            return
        first, longest = _RESUBSCRIBE_SECONDS
        pause = first
        while True:
            try:
                async for namespace in self._redis.changes():
                    self.forget(namespace)
                    _SUBSCRIBED.set(1)
                    pause = first
            except Exception as error:  # noqa: BLE001 (whatever it fails with, it is tried again)
                _log.info("not told of changes by Redis", cause=type(error).__name__)
            finally:
                _SUBSCRIBED.set(0)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if len(self._background) >= _BACKGROUND:
            work.close()
            return
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """End what is under way. The database is its opener's to close."""
        tasks = [*self._background, *(flight for _, flight in self._flights.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._redis is not None:
            await self._redis.close()


def _redis(url: str) -> "RedisLayer":
    from cache_server.entries.shared import RedisLayer  # its client takes a quarter of a second to load

    return RedisLayer(url)


@asynccontextmanager
async def open_layered(url: str, *, redis: str = "", timeout: float = 2.0) -> AsyncIterator[LayeredEntries]:  # noqa: ASYNC109
    """The entries in the database at `url`, with memory and, if `redis` is its URL, Redis above them.

    `timeout` (seconds) is the deadline of each call. Redis need not be there, now or later.
    Raises ValueError and OSError as `open_entries` does, ValueError for a URL that is not Redis's.
    """
    shared = _redis(redis) if redis else None
    async with open_entries(url, call_timeout=timeout) as sql:
        opened = LayeredEntries(sql, MemoryLayer(), shared, timeout=timeout)
        listening = asyncio.create_task(opened.listen(), name="entries:listen")
        try:
            yield opened
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
            await opened.close()
