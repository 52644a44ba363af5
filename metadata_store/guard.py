"""What ml-metadata's core cannot be given as it is: requests are checked, and changed, before they reach it.

PostgreSQL: the core (1.17.1) builds its SQL by hand and escapes with PQescapeLiteral, whose answer it cuts
open and quotes anew. For a text with a backslash that answer is ` E'...'`, and what the client wrote then
stands *outside* the quotes, as SQL. Texts are therefore stored with another character in the backslash's
place, and given back as they were. A filter's literals are escaped for another database, so that a quote
in one ends it; filters with quotes or backslashes inside a literal are refused.

SQLite and MySQL: the core writes a filter's literals as GoogleSQL does, where a backslash makes a quote
part of the text. In SQLite, and in MySQL with some settings (ANSI_QUOTES, NO_BACKSLASH_ESCAPES), that quote
ends the text, and SQL of the client's own follows, writes included. So there a literal can hold one kind
of quotes, never both, and no backslash: then the core has nothing to escape.

All of them: texts must be UTF-8 and without NUL characters (see `texts`).

MySQL and PostgreSQL: `int_value` is 32 bits wide and names 255 characters. A MySQL server without strict
mode would store something else without a word. The core's connection to MySQL takes each byte for a character
(latin1), so that there 255 are bytes; and its numbers end at 65 digits.

All of them: each name that a filter joins makes the core join tables, and databases think about the order of
joins for longer than any client waits (20 on PostgreSQL: 14 s; 40 on MySQL: more than 30 s).
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from math import inf
from typing import Any

from google.protobuf.message import DecodeError

from metadata_store.rpcs import request_of, response_of, writes
from metadata_store.texts import utf8

_BACKSLASH, _STAND_IN = "\\", "\uf05c"
_FROM_STORE = re.compile(f"{_STAND_IN}([01])")
_STAND_IN_BYTES = _STAND_IN.encode()
_NAME_SIZE = 255
_TEXT_BYTES, _VALUE_BYTES = 2**16 - 1, 2**24 - 1  # MySQL's TEXT and MEDIUMTEXT
_LONGEST_NUMBER = 1e65  # MySQL's DECIMAL, which the core's numbers are for it
_JOINS = 12
_NODES = frozenset({"Artifact", "Execution", "Context"})
_TYPES = frozenset(f"{node}Type" for node in _NODES)
_LEAST, _GREATEST = -(2**31), 2**31 - 1
# Of GoogleSQL's lexical rules, the part in which no literal or name can hold a quote or a backslash, and
# in which no comment can hide one. Every alternative begins with another character, so this is linear.
_PLAIN_FILTER = re.compile(
    r"""(?:[^'"`\\#/-]|-(?!-)|/(?!\*)|'(?!'')[^'"`\\]*'|"(?!"")[^'"`\\]*"|`[^'"`\\]*`)*"""
)
# The same, but a literal may hold the other kind of quotes: the core then takes that one's opposite.
_UNESCAPED_FILTER = re.compile(
    r"""(?:[^'"`\\#/-]|-(?!-)|/(?!\*)|'(?!'')[^'\\]*'|"(?!"")[^"\\]*"|`[^'"`\\]*`)*"""
)
_LITERAL = re.compile(r"""'[^']*'|"[^"]*\"""")
_JOINED = re.compile(
    r"(?:contexts|parent_contexts|child_contexts|events|artifacts|executions)_\w+"
    r"|(?:custom_)?properties\s*\.\s*(?:\w+|`[^`]*`)"
)


class Refused(ValueError):
    """The request cannot be carried out on this database; the text says why."""


class Guard:
    """SQLite has room for every text and number; only filters, and what is no text, are refused."""

    def request(self, rpc: str, request: bytes) -> bytes:
        """The request as the core may have it. Raises Refused."""
        if b"\0" in request or not request.isascii():
            _check_texts(rpc, request)
        return self._request(rpc, request)

    def _request(self, rpc: str, request: bytes) -> bytes:
        if _has_filters(rpc):
            message = request_of(rpc)()
            try:
                message.ParseFromString(request)
                _check_filters(
                    message,
                    _UNESCAPED_FILTER,
                    "filter_query: a literal can hold single or double quotes, not both, and no backslash, "
                    "and there can be no comment (ml-metadata's core would take what follows for SQL)",
                )
            except DecodeError as error:
                raise Refused(f"the request is no {rpc}Request") from error
        return request

    def response(self, rpc: str, response: bytes) -> bytes:  # noqa: ARG002 (for those that need it)
        """The response as the client wants it."""
        return response

    def error(self, error: bytes) -> bytes:
        """The error as the client wants it."""
        return error


class MySqlGuard(Guard):
    """Values that do not fit are refused, not cut."""

    def _request(self, rpc: str, request: bytes) -> bytes:
        if writes(rpc):
            try:
                message = request_of(rpc).FromString(request)
            except DecodeError:
                return request  # the core says so
            _check_sizes(message, lambda text: len(text.encode()), "bytes")
            if len(request) > _TEXT_BYTES:
                _check_long(message)
            return request
        return super()._request(rpc, request)


class PostgresqlGuard(Guard):
    """As MySqlGuard, and no text can be taken for SQL."""

    def _request(self, rpc: str, request: bytes) -> bytes:
        message = request_of(rpc)()
        try:
            message.ParseFromString(request)
            if writes(rpc):
                _check_sizes(message, len, "characters")
            _check_filters(
                message,
                _PLAIN_FILTER,
                "filter_query: on PostgreSQL, a literal can hold no quotes and no backslash, and there can "
                "be no comment (ml-metadata's core would take what follows for SQL)",
            )
            changed = _replace_texts(message, _to_store)
        except DecodeError as error:
            raise Refused(f"the request is no {rpc}Request") from error
        return message.SerializeToString() if changed else request

    def response(self, rpc: str, response: bytes) -> bytes:
        """Give backslashes back."""
        if _STAND_IN_BYTES not in response:
            return response
        message = response_of(rpc).FromString(response)
        _replace_texts(message, _from_store)
        return bytes(message.SerializeToString())

    def error(self, error: bytes) -> bytes:
        """Give backslashes back."""
        if _STAND_IN_BYTES not in error:
            return error
        return _from_store(error.decode(errors="replace")).encode()


def guard_for(database: str | None) -> Guard:
    """The guard of a database: sqlite, mysql or postgresql, as ConnectionConfig calls them."""
    return {"mysql": MySqlGuard, "postgresql": PostgresqlGuard}.get(database or "", Guard)()


def _to_store(text: str) -> str:
    if _STAND_IN not in text and _BACKSLASH not in text:
        return text
    return text.replace(_STAND_IN, _STAND_IN + "1").replace(_BACKSLASH, _STAND_IN + "0")


def _from_store(text: str) -> str:
    return _FROM_STORE.sub(lambda found: _BACKSLASH if found[1] == "0" else _STAND_IN, text)


def _messages(message: Any) -> Iterator[Any]:
    """The message and all in it, but not what the core stores encoded (Struct, Any)."""
    if message.DESCRIPTOR.file.package == "google.protobuf":
        return
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for each in value.values():
                    yield from _messages(each)
        elif field.label == field.LABEL_REPEATED:
            for each in value:
                yield from _messages(each)
        else:
            yield from _messages(value)


def _check_texts(rpc: str, request: bytes) -> None:
    plain = utf8(rpc, request)
    if plain is not None and b"\0" not in plain:
        return
    try:
        message = request_of(rpc).FromString(request)
    except DecodeError:
        return  # the core says so
    if plain is None:
        raise Refused("a text is not UTF-8")
    for part in _messages(message):
        for field, value in part.ListFields():
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                texts = [key for key in value if isinstance(key, str)]
            elif field.type != field.TYPE_STRING:
                continue
            else:
                texts = value if field.label == field.LABEL_REPEATED else [value]
            if any("\0" in text for text in texts):
                raise Refused(
                    f"{part.DESCRIPTOR.name}.{field.name}: expected no NUL character: "
                    "ml-metadata's core would store, or ask for, only what stands before it"
                )


def _check_sizes(message: Any, size: Callable[[str], int], unit: str) -> None:
    for part in _messages(message):
        kind = part.DESCRIPTOR.name
        if kind == "Value":
            if part.HasField("int_value") and not _LEAST <= part.int_value <= _GREATEST:
                raise Refused(
                    f"int_value: expected 32 bits (this database has no room for more), got {part.int_value}"
                )
            if unit == "bytes" and _LONGEST_NUMBER <= abs(part.double_value) < inf:
                raise Refused(f"double_value: expected less than 1e65 on MySQL, got {part.double_value}")
            continue
        if kind in _NODES:
            texts = {"name": (part.name,), "external_id": (part.external_id,)}
            texts |= {"properties": part.properties, "custom_properties": part.custom_properties}
        elif kind in _TYPES:
            texts = {"name": (part.name,), "external_id": (part.external_id,), "version": (part.version,)}
            texts |= {"properties": part.properties}
        else:
            continue
        for field, each in texts.items():
            for text in each:
                if len(text) * 4 > _NAME_SIZE and size(text) > _NAME_SIZE:
                    raise Refused(
                        f"{kind}.{field}: expected at most {_NAME_SIZE} {unit} (this database has no room "
                        f"for more), got {size(text)}"
                    )


def _check_long(message: Any) -> None:
    """Check what is longer than a name against MySQL's columns."""
    for part in _messages(message):
        for field, value in part.ListFields():
            if field.label == field.LABEL_REPEATED:
                continue
            if field.type == field.TYPE_STRING:
                limit = _VALUE_BYTES if field.name == "string_value" else _TEXT_BYTES
                size = len(value.encode())
            elif field.name in {"struct_value", "proto_value"}:  # stored in base64
                limit, size = _VALUE_BYTES, 32 + value.ByteSize() * 4 // 3
            else:
                continue
            if size > limit:
                name = f"{part.DESCRIPTOR.name}.{field.name}"
                raise Refused(f"{name}: expected at most {limit} bytes on MySQL, got {size}")


@cache
def _has_filters(rpc: str) -> bool:
    """Whether the RPC's request has room for a filter, at any depth."""
    kinds = [request_of(rpc).DESCRIPTOR]
    for kind in kinds:
        if "filter_query" in kind.fields_by_name:
            return True
        inner = [field.message_type for field in kind.fields if field.message_type is not None]
        kinds += [each for each in inner if each not in kinds]
    return False


def _check_filters(message: Any, allowed: re.Pattern[str], refusal: str) -> None:
    for part in _messages(message):
        if "filter_query" not in part.DESCRIPTOR.fields_by_name:
            continue
        if not allowed.fullmatch(part.filter_query):
            raise Refused(refusal)
        joined = set(_JOINED.findall(_LITERAL.sub("''", part.filter_query)))
        if len(joined) > _JOINS:
            raise Refused(
                f"filter_query: expected at most {_JOINS} different properties, contexts and events "
                f"(each is a join), got {len(joined)}"
            )


def _replace_texts(message: Any, change: Callable[[str], str]) -> bool:
    """Change every text of a message, keys of maps included; whether there was anything to change."""
    changed = False
    for part in _messages(message):
        for field, value in part.ListFields():
            if field.name in {"filter_query", "next_page_token"}:
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                changed |= _replace_keys(value, field.message_type.fields_by_name["value"], change)
            elif field.type != field.TYPE_STRING:
                continue
            elif field.label == field.LABEL_REPEATED:
                texts = [change(text) for text in value]
                if texts != list(value):
                    changed = True
                    value[:] = texts
            elif (text := change(value)) != value:
                changed = True
                setattr(part, field.name, text)
    return changed


def _replace_keys(entries: Any, kind: Any, change: Callable[[str], str]) -> bool:
    keys = [key for key in entries if isinstance(key, str) and change(key) != key]
    for key in keys:
        if kind.message_type is None:
            entries[change(key)] = entries[key]
        else:
            entries[change(key)].CopyFrom(entries[key])
        del entries[key]
    return bool(keys)
