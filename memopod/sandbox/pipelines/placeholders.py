"""Fills the placeholders of a container's command: `{{$}}`, `{{$.inputs...}}` and `{{$.outputs...}}`.

All paths are fixed, and `{{$}}` (the executor input) holds no run id and no URI that changes from run
to run: the command of equal steps is equal text, which is what makes them recognisable as equal.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memopod.sandbox.pipelines.errors import PipelineError
from memopod.sandbox.pipelines.values import as_text, canonical

if TYPE_CHECKING:
    from memopod.sandbox.pipelines.plan import Task

ROOT = "/memopod/"
"""Folder, in a step's own view, of everything that it reads and writes."""
EXECUTOR_OUTPUT = ROOT + "outputs/executor_output.json"
"""Where a component may write `{"parameterValues": {...}}` instead of one file for each parameter."""

_PLACEHOLDER = re.compile(r"\{\{\$(?:\.(?P<expression>.*?))?\}\}")
_EXPRESSION = re.compile(
    r"(?P<side>inputs|outputs)\.(?P<what>parameters|artifacts)"
    r"\[(?P<quote>['\"])(?P<name>[^'\"]+)(?P=quote)\](?:\.(?P<field>path|uri|output_file))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """What one placeholder refers to; `side` is empty for `{{$}}`."""

    side: str = ""
    what: str = ""
    name: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a container runs, all placeholders filled."""

    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]


def path_of(side: str, what: str, name: str) -> str:
    """The fixed path of an input or output, such as `/memopod/outputs/parameters/NAME`."""
    return f"{ROOT}{side}/{what}/{name}"


def references(text: str, place: str) -> Iterator[Reference]:
    """The placeholders of a text. Raises PipelineError for one that the sandbox does not know."""
    for match in _PLACEHOLDER.finditer(text):
        yield _read(match, place)


def split(text: str, place: str) -> Iterator[str | Reference]:
    """A text as its literal pieces and the placeholders between them."""
    start = 0
    for match in _PLACEHOLDER.finditer(text):
        if match.start() > start:
            yield text[start : match.start()]
        yield _read(match, place)
        start = match.end()
    if start < len(text):
        yield text[start:]


def _read(match: re.Match[str], place: str) -> Reference:
    expression = match["expression"]
    if expression is None:
        return Reference()
    parsed = _EXPRESSION.fullmatch(expression)
    known = {
        ("inputs", "parameters", None),
        ("inputs", "artifacts", "path"),
        ("inputs", "artifacts", "uri"),
        ("outputs", "parameters", "output_file"),
        ("outputs", "artifacts", "path"),
        ("outputs", "artifacts", "uri"),
    }
    if parsed is None or (parsed["side"], parsed["what"], parsed["field"]) not in known:
        raise PipelineError(place, f"the sandbox does not know the placeholder {match[0]}")
    return Reference(parsed["side"], parsed["what"], parsed["name"], parsed["field"] or "")


def executor_input(task: "Task", parameters: Mapping[str, Any], artifacts: Iterable[str]) -> dict[str, Any]:
    """The message that `{{$}}` stands for (`ExecutorInput` of Kubeflow Pipelines)."""
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {"outputFile": EXECUTOR_OUTPUT}
    if parameters:
        inputs["parameterValues"] = dict(parameters)
    if present := {name: task.artifacts[name].schema for name in artifacts}:
        inputs["artifacts"] = _artifacts("inputs", present)
    if task.output_parameters:
        outputs["parameters"] = {
            name: {"outputFile": path_of("outputs", "parameters", name)} for name in task.output_parameters
        }
    if task.output_artifacts:
        outputs["artifacts"] = _artifacts("outputs", task.output_artifacts)
    return {"inputs": inputs, "outputs": outputs}


def _artifacts(side: str, schemas: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    return {
        name: {"artifacts": [{"name": name, "type": dict(schema), "uri": path_of(side, "artifacts", name)}]}
        for name, schema in schemas.items()
    }


def render(task: "Task", parameters: Mapping[str, Any], artifacts: Iterable[str]) -> Rendered:
    """Fill a task's command, arguments and environment.

    `parameters` are the values of its inputs, `artifacts` the names of the artifacts it gets.
    Raises PipelineError for a placeholder of an input that was not given.
    """
    present = frozenset(artifacts)
    message = executor_input(task, parameters, sorted(present))

    def value(reference: Reference) -> str:
        if not reference.side:
            return canonical(message)
        if (reference.side, reference.what) == ("inputs", "parameters"):
            if reference.name not in parameters:
                raise PipelineError(
                    f"task {task.name!r}",
                    f"its command needs the input {reference.name!r}, which is not given",
                )
            return as_text(parameters[reference.name])
        if reference.side == "inputs" and reference.name not in present:
            raise PipelineError(
                f"task {task.name!r}",
                f"its command needs the artifact {reference.name!r}, which is not given",
            )
        return path_of(reference.side, reference.what, reference.name)

    def fill(text: str) -> str:
        return "".join(p if isinstance(p, str) else value(p) for p in split(text, f"task {task.name!r}"))

    given = frozenset(parameters) | present
    return Rendered(
        command=tuple(_words(task.command, given, fill)),
        args=tuple(_words(task.args, given, fill)),
        env=tuple((name, fill(text)) for name, text in task.env),
    )


def _words(words: Iterable[str], given: frozenset[str], fill: Callable[[str], str]) -> Iterator[str]:
    for word in words:
        structured = structured_word(word)
        if structured is None:
            yield fill(word)
        else:
            yield from _structured(structured, given, fill)


def structured_word(word: str) -> dict[str, Any] | None:
    """A `{"Concat": [...]}` or `{"IfPresent": {...}}` placeholder, which the SDK writes as JSON text."""
    if not word.startswith(("{", " ")) or not ('"Concat"' in word or '"IfPresent"' in word):
        return None
    try:
        decoded = json.loads(word)
    except ValueError:
        return None
    if isinstance(decoded, dict) and decoded.keys() in ({"Concat"}, {"IfPresent"}):
        return decoded
    return None


def _structured(value: Any, given: frozenset[str], fill: Callable[[str], str]) -> list[str]:
    if isinstance(value, str):
        return [fill(value)]
    if isinstance(value, list):
        return [word for item in value for word in _structured(item, given, fill)]
    if isinstance(value, dict) and "Concat" in value:
        return ["".join(_structured(list(value["Concat"]), given, fill))]
    if isinstance(value, dict) and isinstance(value.get("IfPresent"), dict):
        choice = value["IfPresent"]
        return _structured(
            choice.get("Then" if choice.get("InputName") in given else "Else") or [], given, fill
        )
    raise PipelineError(
        "", f"expected text, Concat or IfPresent inside a placeholder, got {type(value).__name__}"
    )


def structured_texts(value: Any) -> Iterator[str]:
    """All texts inside a Concat or IfPresent placeholder."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from structured_texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name != "InputName":
                yield from structured_texts(item)
