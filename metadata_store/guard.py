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

MySQL and PostgreSQL: `int_value` is 32 bits wide and names 255 characters. A MySQL server without strict
mode would store something else without a word.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError

from metadata_store.rpcs import request_of, response_of, writes

_BACKSLASH, _STAND_IN = "\\", "\uf05c"
_FROM_STORE = re.compile(f"{_STAND_IN}([01])")
_STAND_IN_BYTES = _STAND_IN.encode()
_NAME_CHARACTERS = 255
_URI_BYTES = 65535
_NAMED = frozenset({"Artifact", "Execution", "Context", "ArtifactType", "ExecutionType", "ContextType"})
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


class Refused(ValueError):
    """The request cannot be carried out on this database; the text says why."""


class Guard:
    """SQLite stores what it is given; only filters are checked."""

    def request(self, rpc: str, request: bytes) -> bytes:
        """The request as the core may have it. Raises Refused."""
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
            except UnicodeDecodeError as error:
                raise Refused("a text is not UTF-8") from error
        return request

    def response(self, rpc: str, response: bytes) -> bytes:  # noqa: ARG002 (for those that need it)
        """The response as the client wants it."""
        return response

    def error(self, error: bytes) -> bytes:
        """The error as the client wants it."""
        return error


class MySqlGuard(Guard):
    """Values that do not fit are refused, not cut."""

    def request(self, rpc: str, request: bytes) -> bytes:
        """Check what is to be written."""
        if writes(rpc):
            try:
                message = request_of(rpc).FromString(request)
            except DecodeError:
                return request  # the core says so
            _check_sizes(message)
            for part in _messages(message):
                if part.DESCRIPTOR.name == "Artifact" and len(part.uri.encode()) > _URI_BYTES:
                    raise Refused(f"Artifact.uri: expected at most {_URI_BYTES} bytes")
            return request
        return super().request(rpc, request)


class PostgresqlGuard(Guard):
    """As MySqlGuard, and no text can be taken for SQL."""

    def request(self, rpc: str, request: bytes) -> bytes:
        """Check what is to be written, and what is asked for; put the stand-in for backslashes."""
        message = request_of(rpc)()
        try:
            message.ParseFromString(request)
            if writes(rpc):
                _check_sizes(message)
            _check_filters(
                message,
                _PLAIN_FILTER,
                "filter_query: on PostgreSQL, a literal can hold no quotes and no backslash, and there can "
                "be no comment (ml-metadata's core would take what follows for SQL)",
            )
            changed = _replace_texts(message, _to_store)
        except DecodeError as error:
            raise Refused(f"the request is no {rpc}Request") from error
        except UnicodeDecodeError as error:
            raise Refused("a text is not UTF-8") from error
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


def _check_sizes(message: Any) -> None:
    for part in _messages(message):
        name = part.DESCRIPTOR.name
        if name == "Value":
            if part.HasField("int_value") and not _LEAST <= part.int_value <= _GREATEST:
                raise Refused(
                    f"int_value: expected 32 bits (this database has no room for more), got {part.int_value}"
                )
        elif name in _NAMED:
            for field in ("name", "external_id"):
                if len(getattr(part, field)) > _NAME_CHARACTERS:
                    raise Refused(
                        f"{name}.{field}: expected at most {_NAME_CHARACTERS} characters, "
                        f"got {len(getattr(part, field))}"
                    )


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
        if "filter_query" in part.DESCRIPTOR.fields_by_name and not allowed.fullmatch(part.filter_query):
            raise Refused(refusal)


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
