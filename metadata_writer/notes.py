"""Notes on an execution of what it could not be joined to: with them it is joined later, when nothing else
remembers the step. Pure.

Names are for people, places for `unresolved`: JSON objects of names and places, in as many properties as
it takes, since PostgreSQL has an index over each.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

UNRESOLVED_INPUTS: Final = "unresolved_inputs"
UNRESOLVED_OUTPUTS: Final = "unresolved_outputs"
"""Custom properties of an execution: names of artifacts that the store does not know, comma separated."""
PLACES: Final = {UNRESOLVED_INPUTS: "unresolved_input_uris", UNRESOLVED_OUTPUTS: "unresolved_output_uris"}
"""The first of the properties with their places; the others have `_1`, `_2`, ... behind it."""
UNRESOLVED_SOURCE: Final = "unresolved_source"
"""Custom property of an execution: the external id of the run that it reuses, while the store has none."""
_ROOM: Final = 2_000
"""Bytes of a property, well below what PostgreSQL's index takes."""


def note(execution: Any, what: str, unresolved: Mapping[str, str]) -> None:
    """Note the artifacts (names and places) that an execution lacks, in place of earlier notes."""
    custom = execution.custom_properties
    for name in [n for n in custom if n == what or n.startswith(PLACES[what])]:
        custom.pop(name)
    if unresolved:
        custom[what].string_value = _listed(sorted(unresolved))
    for number, part in enumerate(_parts(unresolved)):
        custom[PLACES[what] + (f"_{number}" if number else "")].string_value = _json(part)


def noted(custom: Mapping[str, Any], what: str) -> dict[str, str]:
    """The artifacts that an execution of these custom properties lacks; none where the notes are not ours."""
    found: dict[str, str] = {}
    for name, value in custom.items():
        if name.startswith(PLACES[what]):
            try:
                found |= msgspec.json.decode(str(value), type=dict[str, str])
            except msgspec.DecodeError:
                continue
    return found


def _listed(names: list[str]) -> str:
    text = ",".join(names)
    if len(text.encode()) <= _ROOM:
        return text
    kept = text.encode()[:_ROOM].decode(errors="ignore").rpartition(",")[0]
    return f"{kept},..."


def _parts(unresolved: Mapping[str, str]) -> Iterator[dict[str, str]]:
    part: dict[str, str] = {}
    for name in sorted(unresolved):
        one = {name: unresolved[name]}
        if part and len(_json(part | one).encode()) > _ROOM:
            yield part
            part = {}
        if len(_json(one).encode()) <= _ROOM:  # no object store has a longer place
            part |= one
    if part:
        yield part


def _json(part: Mapping[str, str]) -> str:
    return json.dumps(part, sort_keys=True, ensure_ascii=False)
