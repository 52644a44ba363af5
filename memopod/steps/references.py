"""References in a manifest (`{{inputs.parameters.x}}`), and what is known of the values behind them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memopod.steps.outputs import OutputArtifact

_REFERENCE = re.compile(r"\{\{\s*(.+?)\s*\}\}")
_OF_THE_RUN = re.compile(
    r"workflow\.(?:name|uid|creationTimestamp.*|duration|status|scheduledTime)|pod\.name|node\.name|retries"
)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that nobody knows before a run; `reason` is the end of a sentence.

    `differs`: it is another one in each run, so that nothing that holds it is reused.
    """

    reason: str
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """An input artifact that the manifest points at: it is taken to be what it was."""

    declared: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Produced:
    """An input artifact that an earlier step puts out, as its entry has it, and how it was declared."""

    artifact: OutputArtifact
    entry: str
    declared: Mapping[str, Any]


ArtifactValue = Given | Produced | Unknown
Value = str | Unknown


def replaced(text: str, scope: Mapping[str, Value]) -> Value:
    """The text with its references replaced; Unknown if one of them is."""
    pieces, end = [], 0
    for match in _REFERENCE.finditer(text):
        value = _value(match.group(1), scope)
        if isinstance(value, Unknown):
            return value
        pieces += [text[end : match.start()], value]
        end = match.end()
    return "".join([*pieces, text[end:]])


def _value(reference: str, scope: Mapping[str, Value]) -> Value:
    if reference in scope:
        return scope[reference]
    if _OF_THE_RUN.fullmatch(reference):
        return Unknown(f"it names its run ({{{{{reference}}}}}), so it differs in each", differs=True)
    owner = ".".join(reference.split(".")[:2])
    found = scope.get(owner)
    return found if isinstance(found, Unknown) else Unknown(f"{{{{{reference}}}}} is not known before a run")


def input_references(inputs: Mapping[str, ArtifactValue]) -> dict[str, ArtifactValue]:
    """What `{{inputs.artifacts.NAME}}` stands for."""
    return {f"inputs.artifacts.{name}": value for name, value in inputs.items()}


def artifact_of(argument: Mapping[str, Any], made: Mapping[str, ArtifactValue]) -> ArtifactValue:
    """The artifact that an argument stands for: one given, or another step's (`from`)."""
    text = str(argument.get("from") or "")
    match = _REFERENCE.fullmatch(text)
    if not text:
        return Given(argument)
    if match is None:
        return Unknown("an artifact is chosen by an expression")
    reference = match.group(1)
    owner = made.get(".".join(reference.split(".")[:2]))
    return made.get(reference, owner if isinstance(owner, Unknown) else Unknown(f"{text} is not known"))


def merged(declared: Mapping[str, Any], value: Given | Produced) -> dict[str, Any]:
    """An input as Argo puts it into the template: where it is, from its producer; the rest as declared."""
    source = value.declared
    kept = {k: v for k, v in source.items() if k not in ("name", "path", "from", "globalName", "mode")}
    return {**declared, **kept, "name": declared["name"], "path": declared.get("path", "")}


def of_item(item: Any) -> dict[str, Value]:
    """What `{{item}}` and `{{item.FIELD}}` stand for."""
    if item is None:
        return {}
    text = item if isinstance(item, str) else json.dumps(item)
    inner = item.items() if isinstance(item, Mapping) else ()
    fields = {f"item.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in inner}
    return {"item": text, **fields}
