"""A step as every database can hold it. Pure.

MLMD's tables give names 255 characters and a URI 65,535 bytes; names that differ in case or trailing blanks
alone are one on MySQL; and the core hands texts to C, where what follows a NUL is lost. These limits are
kept always, so that a step has the same names everywhere. One is kept only where the store refuses a step:
on PostgreSQL each text is in an index whose entries end at 2,704 bytes. A text that was cut says so, and the
property `shortened` names it.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from metadata_writer.records import Input, Output, StepRecord, Value

SHORTENED: Final = "shortened"
"""Custom property of an execution or artifact: the properties whose text was cut, comma separated."""
_NAME: Final = 255
_URI: Final = 65_535
_INDEXED: Final = 2_600
"""Bytes of a property's name and text: PostgreSQL's 2,704 without what an entry has besides."""
_MARK: Final = 64
"""Bytes at the end of a text that was cut, which tell its length and digest."""


def storable(record: StepRecord) -> StepRecord:
    """The record with names that fit and differ, and without NULs; itself where there is nothing to do."""
    if _is_plain(record):
        return record
    return dataclasses.replace(
        record,
        external_id=_name(record.external_id),
        run=dataclasses.replace(
            record.run, pipeline=None if record.run.pipeline is None else _name(record.run.pipeline)
        ),
        type_name=_name(record.type_name),
        component_id=_clean(record.component_id),
        custom=_custom(record.custom),
        inputs=tuple(Input(_clean(item.name), _uri(item.uri)) for item in record.inputs),
        outputs=tuple(
            Output(_output_name(record, name), _name(o.type_name), _uri(o.uri), _custom(o.custom))
            for o, name in zip(record.outputs, _told_apart(o.name for o in record.outputs), strict=True)
        ),
    )


def shortened(record: StepRecord) -> StepRecord:
    """The record with texts that any index holds."""
    return dataclasses.replace(
        record,
        component_id=_cut("component_id", record.component_id),
        custom=_shortened(record.custom),
        outputs=tuple(
            dataclasses.replace(output, custom=_shortened(output.custom)) for output in record.outputs
        ),
    )


def _is_plain(record: StepRecord) -> bool:
    names = [record.external_id, record.type_name, record.run.pipeline or "", *record.custom]
    texts = [record.component_id, *(v for v in record.custom.values() if isinstance(v, str))]
    uris = [item.uri for item in record.inputs]
    texts += (item.name for item in record.inputs)
    for output in record.outputs:
        names += (output.type_name, *output.custom, f"{record.external_id}/{output.name}")
        texts += (v for v in output.custom.values() if isinstance(v, str))
        uris.append(output.uri)
    whole = "".join((*names, *texts, *uris))
    return (
        max(map(len, names)) <= _NAME
        and max(map(len, uris), default=0) <= _URI // 4
        and _differ(record.custom)
        and _differ([output.name for output in record.outputs])
        and "\0" not in whole
        and (whole.isascii() or _clean(whole) == whole)
    )


def _differ(names: Collection[str]) -> bool:
    return len({_alike(name) for name in names}) == len(names)


def _clean(text: str) -> str:
    if not text.isascii():  # half of a pair, as JSON may have it, is no text
        text = text.encode(errors="replace").decode()
    return text.replace("\0", "\ufffd")


def _name(text: str, room: int = _NAME) -> str:
    text = _clean(text)
    return text if len(text) <= room else f"{text[: room - 17]}~{_digest(text)}"


def _output_name(record: StepRecord, name: str) -> str:
    return _name(name, _NAME - len(_name(record.external_id)) - 1)  # together they identify the artifact


def _uri(uri: str) -> str:
    uri = _clean(uri)
    if len(uri.encode()) <= _URI:
        return uri
    return f"{uri.encode()[: _URI - 20].decode(errors='ignore')}~{_digest(uri)}"


def _custom(custom: Mapping[str, Value]) -> dict[str, Value]:
    return {
        _name(name): _clean(value) if isinstance(value, str) else value
        for name, value in zip(_told_apart(custom), custom.values(), strict=True)
    }


def _shortened(custom: Mapping[str, Value]) -> dict[str, Value]:
    found = {n: _cut(n, value) if isinstance(value, str) else value for n, value in custom.items()}
    cut = [name for name, value in custom.items() if found[name] != value]
    return {**found, SHORTENED: _cut(SHORTENED, ",".join(cut))} if cut else found


def _told_apart(names: Iterable[str]) -> list[str]:
    """The names; one that could be taken for another that sorts before it has a digest behind it."""
    names = list(names)
    first: dict[str, str] = {}
    for name in sorted(names):
        first.setdefault(_alike(name), name)
    return [
        name if first[_alike(name)] == name else f"{_name(name, _NAME - 17)}~{_digest(name)}"
        for name in names
    ]


def _alike(name: str) -> str:
    return _clean(name).rstrip().casefold()


def _cut(name: str, text: str) -> str:
    room = _INDEXED - len(name.encode())
    if _size(text) <= room:
        return text
    whole = len(text.encode())
    kept = text
    while _size(kept) > room - _MARK:
        kept = kept[: min(len(kept) - 1, int(len(kept) * (room - _MARK) / _size(kept)))]
    return f"{kept}... ({whole} bytes, sha256 {_digest(text)})"


def _size(text: str) -> int:
    return len(text.encode()) + 3 * text.count("\\")  # the store's stand-in for one has four bytes


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
