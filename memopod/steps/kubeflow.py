"""The fingerprint of a step as Kubeflow Pipelines' cache server (v1) computes it, byte for byte.

Kubeflow reads Argo's template with Go's encoding/json, keeps some of its fields, writes them with
encoding/json again and takes the SHA-256 (backend/src/cache/server/mutation.go). Where Go and Python
disagree about JSON, Go is right here: numbers are float64 and written in its own format, a lone
surrogate and each byte that is no UTF-8 become U+FFFD, HTML characters are escaped.

It is here to find what Kubeflow stored. It says nothing about scripts or resources, so that all such
steps look the same: `memopod.steps.key` is what decides a reuse of memopod's own.
"""

import hashlib
import json
import math
import re
from decimal import Decimal
from typing import Any

_KEPT = ("inputs", "outputs", "volumes", "initContainers", "sidecars")
_KEPT_OF_CONTAINER = ("image", "command", "args", "env", "volumeMounts")

_MAX_DEPTH = 10_000
"""Of encoding/json's scanner."""
_MAX_WHOLE_DIGITS = 800
"""strconv loses its place in numbers with more digits before the point."""

# Text between these goes into JSON as it is. Both are lone surrogates, which no template holds any
# more by then.
_RAW, _RAW_END = "\ud800", "\udbff"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"  # the only alternative of six characters: half of a pair
    r"|\\.",
    re.DOTALL,
)
_NUMBER = re.compile(r"-?([0-9]+)(\.[0-9]+)?(?:[eE]([+-]?)0*([0-9]*))?")
_TOKEN = re.compile(r'[ \t\n\r]*([\[\]{},:]|"(?:[^"\\]|\\.)*"|[^ \t\n\r\[\]{},:"]+|.)', re.DOTALL)


class FingerprintError(ValueError):
    """The template has no fingerprint: Kubeflow would not have cached the step."""


class TemplateRefused(FingerprintError):
    """Go does not read the text as a JSON object."""


class ContainerRefused(FingerprintError):
    """`container` is there and is no object; Kubeflow's server panics."""


def fingerprint(template_text: str | bytes) -> str:
    """64 hexadecimal digits. Raises TemplateRefused and ContainerRefused."""
    return hashlib.sha256(fingerprinted(template_text)).hexdigest()


def fingerprinted(template_text: str | bytes) -> bytes:
    """What the fingerprint is the SHA-256 of: the fields that count, as Go's json.Marshal writes them.

    Raises TemplateRefused and ContainerRefused.
    """
    text = _as_go_sees(template_text)
    try:
        return _encode(_kept(_decode(text))).encode()
    except RecursionError:
        return _join(_kept(_decode_deep(text))).encode()


def _as_go_sees(text: str | bytes) -> str:
    """The text without surrogates, whether escaped, undecodable, or left over by a decoder of Pods."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    text = _LONE_SURROGATE.sub("\ufffd", text)
    if "\\u" in text:
        text = _ESCAPE.sub(lambda match: "\\ufffd" if len(match[0]) == 6 else match[0], text)
    return text


def _kept(template: Any) -> dict[str, Any]:
    if template is None:
        return {}
    if not isinstance(template, dict):
        raise TemplateRefused("expected the template to be a JSON object; it is another JSON value")
    kept = {name: template[name] for name in _KEPT if name in template}
    if "container" in template:
        container = template["container"]
        if not isinstance(container, dict):
            raise ContainerRefused("expected the template's container to be an object; it is not")
        kept["container"] = {name: container[name] for name in _KEPT_OF_CONTAINER if name in container}
    return kept


def _decode(text: str) -> Any:
    """The JSON value, numbers as `_number` gives them."""
    try:
        return json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise TemplateRefused("expected the template to be JSON; it is not") from error


def _refuse(_constant: str) -> None:
    raise TemplateRefused("expected the template to be JSON; it holds a number that JSON does not know")


def _number(literal: str) -> int | str:
    """An integer that float64 holds, or the text that Go writes, marked as raw."""
    if len(literal) < 16 and literal.isdigit():
        return int(literal)
    match = _NUMBER.fullmatch(literal)
    assert match, "the decoder found a number"
    whole, fraction, sign, exponent = match.groups(default="")
    if len(whole) > _MAX_WHOLE_DIGITS:
        raise TemplateRefused(f"expected numbers of up to {_MAX_WHOLE_DIGITS} digits; one is longer")
    # strconv reads no more than five digits of an exponent.
    value = float(f"{whole}{fraction}e{sign}{exponent[:5] or 0}")
    if math.isinf(value):
        raise TemplateRefused("expected numbers that fit into a float64; one is too large")
    return _RAW + _float_text(-value if literal.startswith("-") else value) + _RAW_END


def _float_text(value: float) -> str:
    """As encoding/json writes it: the shortest digits, with an exponent below 1e-6 and from 1e21 on."""
    text = repr(value)
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        return f"{Decimal(text):f}".removesuffix(".0")
    return text.replace("e-0", "e-").replace(".0e", "e")


def _encode(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.replace(f'"{_RAW}', "").replace(f'{_RAW_END}"', "")


# For a text that is nested deeper than Python's own decoder can follow: no recursion, and slower.


class _Frame:
    """An array (`[`), an object (`{`) or the text as a whole (``), while it is read."""

    def __init__(self, bracket: str) -> None:
        self.bracket = bracket
        self.names: list[str] = []
        self.values: list[Any] = []
        self.awaits = "first" if bracket else "value"

    def takes_value(self) -> bool:
        return self.awaits == "value" or (self.awaits == "first" and self.bracket == "[")

    def ends_with(self, piece: str) -> bool:
        return self.awaits in ("first", "next") and (self.bracket, piece) in (("[", "]"), ("{", "}"))

    def add(self, value: Any) -> None:
        self.values.append(value)
        self.awaits = "next"

    def take(self, piece: str) -> None:
        """A scalar, a name, a colon or a comma."""
        if self.takes_value():
            self.add(_encode(_decode(piece)))
        elif self.bracket == "{" and self.awaits in ("first", "name") and piece.startswith('"'):
            self.names.append(_decode(piece))
            self.awaits = "colon"
        elif self.awaits == "colon" and piece == ":":
            self.awaits = "value"
        elif self.awaits == "next" and self.bracket and piece == ",":
            self.awaits = "name" if self.bracket == "{" else "value"
        else:
            raise TemplateRefused("expected the template to be JSON; it is not")

    def value(self) -> Any:
        return dict(zip(self.names, self.values, strict=True)) if self.bracket == "{" else self.values


def _decode_deep(text: str) -> Any:
    """The template with all below its second level, and each scalar, encoded already."""
    frames = [_Frame("")]
    for match in _TOKEN.finditer(text.rstrip(" \t\n\r")):
        piece = match[1]
        if piece in ("[", "{") and frames[-1].takes_value():
            frames.append(_Frame(piece))
            if len(frames) > _MAX_DEPTH + 1:
                raise TemplateRefused(f"expected up to {_MAX_DEPTH} levels in the template; it has more")
        elif frames[-1].ends_with(piece):
            value = frames.pop().value()
            frames[-1].add(_join(value) if len(frames) > 2 else value)
        else:
            frames[-1].take(piece)
    if len(frames) > 1:
        raise TemplateRefused("expected the template to be JSON; it ends too early")
    return frames[0].values[0]


def _join(value: Any) -> str:
    """JSON text of values that are encoded already, up to the second level."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_encode(name)}:{_join(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_join, value)) + "]"
    assert isinstance(value, str), "scalars are encoded when they are read"
    return value
