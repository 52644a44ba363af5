"""Entries as rows, and the statements that write them on each database."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Insert, Row, and_, func, literal_column
from sqlalchemy.dialects import mysql, postgresql, sqlite

from cache_server.entries.entry import EntriesUnavailable, Entry
from cache_server.entries.schema import entries
from memopod.steps.outputs import Outputs

_COLUMNS = tuple(
    column.name for column in entries.columns if column.name not in {"entry_key", "active_at", "replaced"}
)


class Unreadable(EntriesUnavailable):
    """A row that is no entry's. It says nothing about the database."""


@contextmanager
def reading(call: str) -> Iterator[None]:
    """Turns what `from_row` raises for a damaged row into Unreadable."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"entries: {call}: a row that is no entry's") from error


def to_row(entry: Entry) -> dict[str, Any]:
    """The values of a new entry's row: it has not been used, and is active since it was recorded."""
    return {
        **{name: getattr(entry, name) for name in _COLUMNS},
        "entry_key": entry.key,
        "components": msgspec.json.encode(dict(entry.components)).decode(),
        "outputs": msgspec.json.encode(entry.outputs.to_json()).decode(),
        "uses": 0,
        "last_used_at": None,
        "active_at": entry.recorded_at,
        "replaced": 0,
    }


def from_row(row: Row[Any] | Mapping[str, Any]) -> Entry:
    """The entry of a row of `entries`. Raises KeyError, TypeError or ValueError for a damaged one."""
    values = row if isinstance(row, Mapping) else row._mapping  # noqa: SLF001  SQLAlchemy's public name
    return Entry(
        **{
            **{name: values[name] for name in _COLUMNS},
            "key": values["entry_key"],
            "components": msgspec.json.decode(values["components"]),
            "outputs": Outputs.from_json(msgspec.json.decode(values["outputs"])),
        }
    )


def _replaces(new: Any) -> ColumnElement[bool]:
    """Whether a row replaces the one that stands: a newer success, of another Pod."""
    return and_(new.finished_at > entries.c.finished_at, new.pod_uid != entries.c.pod_uid)


def _assigned(name: str, new: Any) -> Any:
    # Without a parameter of its own: asyncmy writes many rows by one statement only then.
    return entries.c.replaced + literal_column("1") if name == "replaced" else new[name]


def _sqlite_upsert() -> Insert:
    added = sqlite.insert(entries)
    return added.on_conflict_do_update(
        index_elements=[entries.c.namespace, entries.c.entry_key],
        set_={name: _assigned(name, added.excluded) for name in entries.c.keys()},  # noqa: SIM118
        where=_replaces(added.excluded),
    )


def _postgresql_upsert() -> Insert:
    added = postgresql.insert(entries)
    return added.on_conflict_do_update(
        index_elements=[entries.c.namespace, entries.c.entry_key],
        set_={name: _assigned(name, added.excluded) for name in entries.c.keys()},  # noqa: SIM118
        where=_replaces(added.excluded),
    )


def _mysql_upsert() -> Insert:
    """MySQL's upsert knows no condition, and each assignment sees what those before it have set.

    So the two columns of the condition come last; the very last one asks for the id, which by then is
    the new one if the row is replaced.
    """
    added = mysql.insert(entries)
    new = added.inserted
    replaces = _replaces(new)
    others = [name for name in entries.c.keys() if name not in {"finished_at", "pod_uid"}]  # noqa: SIM118
    assignments = [
        (name, func.if_(replaces, _assigned(name, new), entries.c[name])) for name in [*others, "finished_at"]
    ]
    same_id = entries.c.id == new.id
    return added.on_duplicate_key_update(
        [*assignments, ("pod_uid", func.if_(same_id, new.pod_uid, entries.c.pod_uid))]
    )


_UPSERTS: Mapping[str, Callable[[], Insert]] = {
    "sqlite": _sqlite_upsert,
    "postgresql": _postgresql_upsert,
    "mysql": _mysql_upsert,
}


def upsert(dialect: str) -> Insert:
    """Adds rows of `to_row`; each replaces the one of its (namespace, key) that it is newer than."""
    return _UPSERTS[dialect]()
