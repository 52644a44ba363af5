"""The objects, in memory and in SQLite, and the recent changes that watches replay.

One number counts all writes: it is the resourceVersion of what was written, as in etcd. A write is
in the database before anybody sees it, so a server that is killed comes back with every object and
version that it ever answered with; only the history starts anew, and older watches are told so (410).
All methods are synchronous and of one thread: nothing can come between a read and the write after it.
"""

import asyncio
import os
import sqlite3
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from memopod.kube import Resource
from memopod.sandbox.apiserver.catalog import SERVED

Object = dict[str, Any]
Key = tuple[str, str]

_LOCK_SECONDS = 2.0
"""How long to wait for a server that is about to end."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (resource, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS version (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL);
INSERT OR IGNORE INTO version VALUES (1, 1);
"""


class Expired(Exception):
    """The changes since that version are no longer kept."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write: `before` is None for a new object, `after` for a deleted one."""

    version: int
    before: Object | None
    after: Object | None


@dataclass(slots=True)
class _Collection:
    objects: dict[Key, Object]
    changes: deque[Change]
    floor: int
    """The newest version whose change is no longer in `changes`."""


class Storage:
    """All objects of one server. Stored objects must not be changed in place.

    `history` is how many changes of each kind are kept for watches. Raises OSError for a file that
    cannot be written, is in use by another server or is no database.
    """

    def __init__(self, path: Path, *, history: int = 5000) -> None:
        self._history = history
        self._database = _open(path)
        self.version: int = self._database.execute("SELECT value FROM version").fetchone()[0]
        self._collections = {served.resource: self._load(served.resource) for served in SERVED}
        self._changed: defaultdict[Resource, asyncio.Event] = defaultdict(asyncio.Event)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """One object, or None."""
        return self._collections[resource].objects.get((namespace or "", name))

    def items(self, resource: Resource) -> list[Object]:
        """All objects of a kind, ordered by namespace and name."""
        objects = self._collections[resource].objects
        return [objects[key] for key in sorted(objects)]

    def put(self, resource: Resource, item: Object) -> Object:
        """Store a new state of an object under the next version; returns what was stored."""
        version = self.version + 1
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(version)}}
        key = _key(item)
        self._write(
            version,
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)",
            (_name(resource), *key, msgspec.json.encode(item)),
        )
        objects = self._collections[resource].objects
        before = objects.get(key)
        objects[key] = item
        self._record(resource, Change(version, before, item))
        return item

    def remove(self, resource: Resource, item: Object) -> Object:
        """Remove an object; returns its last state, under the version of its removal."""
        version = self.version + 1
        key = _key(item)
        self._write(
            version,
            "DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?",
            (_name(resource), *key),
        )
        before = self._collections[resource].objects.pop(key)
        self._record(resource, Change(version, before, None))
        return {**before, "metadata": {**before["metadata"], "resourceVersion": str(version)}}

    def since(self, resource: Resource, version: int) -> list[Change]:
        """The changes after `version`, oldest first; raises Expired if some are no longer kept."""
        collection = self._collections[resource]
        if version < collection.floor or version > self.version:
            raise Expired(f"too old resource version: {version} ({collection.floor})")
        newer = []
        for change in reversed(collection.changes):
            if change.version <= version:
                break
            newer.append(change)
        newer.reverse()
        return newer

    def changed(self, resource: Resource) -> asyncio.Event:
        """An event that the next change of this kind, or `wake`, sets."""
        return self._changed[resource]

    def wake(self) -> None:
        """Set every event that somebody waits for."""
        for resource in list(self._changed):
            self._changed.pop(resource).set()

    def _load(self, resource: Resource) -> _Collection:
        rows = self._database.execute("SELECT body FROM objects WHERE resource = ?", (_name(resource),))
        objects = {_key(item): item for item in (msgspec.json.decode(body) for (body,) in rows)}
        return _Collection(objects, deque(), self.version)

    def _write(self, version: int, statement: str, values: tuple[Any, ...]) -> None:
        self._database.execute("BEGIN")
        try:
            self._database.execute(statement, values)
            self._database.execute("UPDATE version SET value = ?", (version,))
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
        self.version = version

    def _record(self, resource: Resource, change: Change) -> None:
        collection = self._collections[resource]
        collection.changes.append(change)
        if len(collection.changes) > self._history:
            collection.floor = collection.changes.popleft().version
        if resource in self._changed:
            self._changed.pop(resource).set()


def _open(path: Path) -> sqlite3.Connection:
    # Secrets are among the objects.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    database = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_SECONDS)
    try:
        # Two servers with one store would not see each other's writes.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        # A killed process loses nothing; only a crash of the machine may lose the last writes.
        database.execute("PRAGMA synchronous=NORMAL")
        database.executescript(_SCHEMA)
    except sqlite3.DatabaseError as error:
        database.close()
        raise OSError(f"{path}: cannot be used as the sandbox's store: {error}") from error
    return database


def _key(item: Object) -> Key:
    metadata = item["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def _name(resource: Resource) -> str:
    return f"{resource.group}/{resource.plural}"
