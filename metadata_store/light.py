"""The lightest reads, a type or a node by its name, as one statement each: pure.

The core opens a transaction and asks four to six statements, each of which it writes out and has parsed anew.
Here one statement reads the same rows at one moment. The answer is made here only where the rows leave no
doubt what the core's would be. For everything else there is None, and the core is asked: types with a
version, a parent or anything but a name and properties; values that the core keeps in another form
(doubles, structures, messages), its mark for NULL, and texts beyond ASCII, which it sends to MySQL as latin1.
"""

from collections.abc import Callable, Sequence
from string import Template
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from metadata_store.rpcs import request_of, response_of

ROWS: Final = 200
"""A node with more properties is left to the core."""

_LONGEST_REQUEST: Final = 4096  # bytes: some names
# ml_metadata/metadata_store/constants.h and ml_metadata/util/struct_utils.cc
_NOT_AS_WRITTEN: Final = ("__MLMD_NULL__", "mlmd-struct::")
# TypeKind in ml_metadata/metadata_store/types.h
_KINDS: Final = {"Execution": 0, "Artifact": 1, "Context": 2}
_OWN_COLUMNS: Final = {"Execution": ("last_known_state",), "Artifact": ("uri", "state"), "Context": ()}
_NODE_COLUMNS: Final = (
    "id", "type_id", "name", "external_id", "create_time_since_epoch", "last_update_time_since_epoch",
)  # fmt: skip

# No index keeps two types from having one name; the core takes the first.
_TYPE_ID: Final = "(SELECT id FROM `Type` WHERE name = ? AND version IS NULL AND type_kind = %d LIMIT 1)"
_TYPE: Final = Template(
    "SELECT t.id, t.name, "
    "t.version IS NOT NULL OR t.description IS NOT NULL OR t.external_id IS NOT NULL "
    "OR t.input_type IS NOT NULL OR t.output_type IS NOT NULL "
    "OR EXISTS (SELECT 1 FROM `ParentType` WHERE type_id = t.id), p.name, p.data_type "
    "FROM `Type` t LEFT JOIN `TypeProperty` p ON p.type_id = t.id "
    "WHERE t.id = $type_id LIMIT $rows"
)
_NODE: Final = Template(
    "SELECT $columns, t.name, p.name, p.is_custom_property, p.int_value, p.double_value, p.string_value, "
    "p.proto_value IS NOT NULL, p.bool_value "
    "FROM `$kind` n JOIN `Type` t ON t.id = n.type_id LEFT JOIN `${kind}Property` p ON p.${lower}_id = n.id "
    "WHERE n.type_id = $type_id AND n.name = ? LIMIT $rows"
)

Row = Sequence[Any]


class _NotPlain(Exception):
    """The rows hold something that only the core knows how to answer."""


class Light(NamedTuple):
    """How one RPC is answered. `statement` has a `?` for each of the names."""

    statement: str
    names: tuple[str, ...]
    answer: Callable[[Sequence[Row]], bytes]


def parameters(rpc: str, request: bytes) -> tuple[str, ...] | None:
    """The names that are asked for; None if the core must be asked."""
    if len(request) > _LONGEST_REQUEST:
        return None
    try:
        message = request_of(rpc).FromString(request)
        names = tuple([getattr(message, field) for field in LIGHT[rpc].names])
    except (DecodeError, UnicodeDecodeError):
        return None
    if message.type_version:
        return None
    for name in names:
        # Without quotes and backslashes, whatever a database takes for one.
        if not name or not name.isascii() or not name.isprintable() or "'" in name or "\\" in name:
            return None
    return names


def response_to(rpc: str, rows: Sequence[Row]) -> bytes | None:
    """The response to a read that found these rows; None if the core must be asked."""
    if len(rows) > ROWS:
        return None
    try:
        return LIGHT[rpc].answer(rows)
    except (_NotPlain, TypeError, ValueError):
        return None


def _type(kind: str) -> Light:
    response, field = response_of(f"Get{kind}Type"), f"{kind.lower()}_type"

    def answer(rows: Sequence[Row]) -> bytes:
        if not rows:
            raise _NotPlain  # NOT_FOUND, in the core's words
        found = response()
        made = getattr(found, field)
        made.id, made.name, not_plain = rows[0][0], _text(rows[0][1]), rows[0][2]
        if not_plain:
            raise _NotPlain
        for *_, name, data_type in rows:
            if name is not None:
                made.properties[_text(name)] = data_type
        return bytes(found.SerializeToString())

    statement = _TYPE.substitute(type_id=_TYPE_ID % _KINDS[kind], rows=ROWS + 1)
    return Light(statement, ("type_name",), answer)


def _node(kind: str) -> Light:
    response, field = response_of(f"Get{kind}ByTypeAndName"), kind.lower()
    columns = _NODE_COLUMNS + _OWN_COLUMNS[kind]
    texts = {columns.index(name) for name in ("name", "external_id", "uri") if name in columns}
    own = [(number, name, number in texts) for number, name in enumerate(columns)]
    type_at, first = len(columns), len(columns) + 1

    def answer(rows: Sequence[Row]) -> bytes:
        found = response()
        if rows:
            row, node = rows[0], getattr(found, field)
            for number, name, is_text in own:
                value = row[number]
                if value is not None:
                    setattr(node, name, _text(value) if is_text else value)
            node.type = _text(row[type_at])
            if row[first] is not None:
                for row in rows:
                    _property(node, row[first:])
        return bytes(found.SerializeToString())

    statement = _NODE.substitute(
        columns=", ".join(f"n.{column}" for column in columns),
        kind=kind, lower=field, type_id=_TYPE_ID % _KINDS[kind], rows=ROWS + 1,
    )  # fmt: skip
    return Light(statement, ("type_name", f"{field}_name"), answer)


def _property(node: Any, row: Row) -> None:
    name, is_custom, integer, double, text, has_message, truth = row
    value = (node.custom_properties if is_custom else node.properties)[_text(name)]
    if integer is not None:  # the core looks in this order
        value.int_value = integer
    elif double is not None:
        raise _NotPlain
    elif text is not None:
        value.string_value = _text(text)
    elif has_message or truth not in (0, 1):
        raise _NotPlain
    else:
        value.bool_value = bool(truth)


def _text(value: str) -> str:
    if not value.isascii() or "\0" in value or value.startswith(_NOT_AS_WRITTEN):
        raise _NotPlain
    return value


LIGHT: Final[dict[str, Light]] = {f"Get{kind}Type": _type(kind) for kind in _KINDS} | {
    f"Get{kind}ByTypeAndName": _node(kind) for kind in _KINDS
}
"""The RPCs that read one row, by an index, and what belongs to it."""
