"""How a node, a value, a time and an edge read.

Values come from pipelines and may hold anything: control characters are spelled out, so that no value
can write to the terminal, and long ones are cut with the length said.
"""

import json
from datetime import UTC, datetime

from rich.text import Text

from memopod.lineage.model import (
    Artifact,
    Direction,
    Edge,
    Execution,
    Node,
    Parameter,
    Relation,
    State,
    Value,
)

VALUE_WIDTH = 60
"""Characters of a value that are shown: with names and a tree's guides they fit on most terminals."""

_STYLES = {
    State.COMPLETE: "green",
    State.CACHED: "cyan",
    State.RUNNING: "yellow",
    State.NEW: "yellow",
    State.FAILED: "red",
    State.CANCELED: "magenta",
    State.UNKNOWN: "dim",
}

_UP = {
    Relation.PRODUCED: "produced by ",
    Relation.HANDED_ON: "handed on by ",
    Relation.REUSED: "reused ",
    Relation.SAME_VALUE: "same value ({name}) in ",
    Relation.USED: "input {name}: ",
}
_DOWN = {
    Relation.PRODUCED: "output {name}: ",
    Relation.HANDED_ON: "output {name}, handed on: ",
    Relation.REUSED: "reused by ",
    Relation.SAME_VALUE: "same value ({name}) in ",
    Relation.USED: "used as {name} by ",
}


def printable(text: str) -> str:
    """The text on one line, everything that is not printable spelled out as Python would."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def value_text(value: Value, width: int = VALUE_WIDTH) -> str:
    """A parameter's value on one line: text in quotes, anything else as JSON."""
    whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Spelling out can only lengthen a text: what is certainly cut off need not be spelled out.
    text = printable(whole[: width + 1])
    text = f'"{text}"' if isinstance(value, str) else text
    return text if len(text) <= width else f"{text[: width - 1]}… ({len(whole):,} characters)"


def duration(seconds: float | None) -> str:
    """`850 ms`, `3.2 s`, `4 min 05 s`, `2 h 03 min`; empty where unknown.

    Kubernetes keeps times in whole seconds, so that nothing is known of a difference of none.
    """
    if seconds is None:
        return ""
    if seconds == 0:
        return "<1 s"
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(milliseconds: int | None) -> str:
    """A time since the epoch in UTC, to the second; empty where unknown."""
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def state_text(state: State) -> Text:
    """A state in its colour."""
    return Text(state.value, style=_STYLES[state])


def node_text(node: Node) -> Text:
    """A node on one line."""
    if isinstance(node, Execution):
        return _execution(node)
    if isinstance(node, Parameter):
        return Text.assemble((printable(node.title), "bold"), " = ", value_text(node.value))
    return artifact_text(node)


def artifact_text(artifact: Artifact) -> Text:
    """An artifact's name, type, location and size on one line."""
    text = Text.assemble((printable(artifact.title), "bold"), (f" {printable(artifact.type)}", "dim"))
    if artifact.uri != artifact.title:
        text.append(f" {printable(artifact.uri)}")
    if artifact.size is not None:
        text.append(f" {artifact.size:,} bytes", style="dim")
    return text.append(f" [{artifact.key}]", style="dim")


def edge_text(edge: Edge, direction: Direction) -> Text:
    """What leads from the node above to the node below it in a tree."""
    words = (_UP if direction is Direction.UP else _DOWN)[edge.relation]
    name = printable(edge.name)
    text = words.format(name=name) if name else words.replace("{name}", "").replace(" :", ":")
    return Text(" ".join(text.split()) + " ", style="italic yellow" if _is_hint(edge) else "italic dim")


def _is_hint(edge: Edge) -> bool:
    return edge.relation is Relation.SAME_VALUE


def _execution(execution: Execution) -> Text:
    text = Text.assemble((printable(execution.title), "bold"), " ", state_text(execution.state))
    took = duration(execution.seconds)
    if took:
        text.append(f" {took}")
    return text.append(f" [{execution.key}]", style="dim")
