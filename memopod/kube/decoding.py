"""What the API server's answers are made of: pages of a list, lines of a watch, and objects in them.

Objects are decoded one by one: one that is too deep for that, or does not fit, must not hide the others.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from memopod.kube.errors import Unavailable

_LONGEST_ERROR = 400
_DEEPEST = 11_000
"""Levels: the API server takes JSON that is nested 10,000 deep, ten times what Python decodes."""

decode_json = msgspec.json.Decoder().decode
Decode = Callable[[msgspec.Raw], dict[str, Any]]


class Page(msgspec.Struct):
    """A page of a list; its objects are decoded one by one."""

    metadata: dict[str, Any]
    kind: str = ""
    apiVersion: str = ""  # noqa: N815 (a name in JSON)
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


_decode_page = msgspec.json.Decoder(Page).decode
_decode_event = msgspec.json.Decoder(_Event).decode


def split_page(body: bytes) -> Page:
    """A page, its objects not decoded yet: one that is too deep for that must not hide the others."""
    try:
        return _decode_page(body)
    except RecursionError:
        usual = sys.getrecursionlimit()
        # Passing over an object takes little of the stack for each level of it, unlike building it.
        sys.setrecursionlimit(_DEEPEST)
        try:
            return _decode_page(body)
        finally:
            sys.setrecursionlimit(usual)


def cut_off(request: str, error: Exception) -> Unavailable:
    """A connection that could not be made, broke, or carried something else than JSON."""
    return Unavailable(f"{request}: {type(error).__name__}: {error}"[:_LONGEST_ERROR], reason="Connection")


def decoder(shape: type | None) -> Decode:
    """Decodes what a shape has of an object, and all of one that does not fit."""
    if shape is None:
        return decode_json
    fitting: Any = msgspec.json.Decoder(shape).decode

    def decode(raw: msgspec.Raw) -> dict[str, Any]:
        try:
            found: dict[str, Any] = fitting(raw)
        except msgspec.ValidationError:
            found = decode_json(raw)
        return found

    return decode


def objects(items: Sequence[msgspec.Raw], decode: Decode, request: str) -> Iterator[dict[str, Any]]:
    """Objects one by one; one that is too deeply nested to be read is skipped. Raises Unavailable."""
    for raw in items:
        try:
            item = decode(raw)
        except RecursionError:
            _tell_skipped(request)
            continue
        except ValueError as error:
            raise cut_off(request, error) from error
        yield item


def event_of(request: str, line: bytes, decode: Decode) -> dict[str, Any] | None:
    """One event of a watch; None for an object too deeply nested to be read, which is skipped."""
    try:
        event = _decode_event(line)
        whole = event.type in ("ERROR", "BOOKMARK")
        return {"type": event.type, "object": (decode_json if whole else decode)(event.object)}
    except RecursionError:
        _tell_skipped(request)
        return None


def _tell_skipped(request: str) -> None:
    structlog.get_logger().warning("skipped an object that is nested too deeply", request=request)


def status_of(body: bytes) -> Mapping[str, Any]:
    """The Status object that a refusal carries; empty if it carries something else."""
    try:
        answer = decode_json(body)
    except (ValueError, RecursionError):
        # A proxy on the way answers in its own format; the HTTP status says enough.
        return {}
    return answer if isinstance(answer, dict) else {}


class Lines:
    """Splits a body into lines, however long: aiohttp's own reading by lines has an upper limit."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that `chunk` completes."""
        searched = len(self._rest)
        self._rest += chunk
        while (end := self._rest.find(b"\n", searched)) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            searched = 0
            if line:
                yield line
