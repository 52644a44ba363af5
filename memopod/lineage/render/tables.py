"""Lineage as tables: one row a node, a step or a run."""

from collections import defaultdict

from rich.table import Table
from rich.text import Text

from memopod.lineage.model import Artifact, Edge, Execution, Graph, Node, Parameter, RunList, RunReport, State
from memopod.lineage.render.wording import (
    duration,
    moment,
    printable,
    state_text,
    value_text,
)


def table(graph: Graph) -> Table:
    """A graph of `up` or `down`: its nodes in the order in which they were found; limits below."""
    found = _table("node", "name", "state or type", "took", "how it came about", "value or location")
    before: dict[str, list[Edge]] = defaultdict(list)
    for edge in graph.edges:
        before[edge.target].append(edge)
    for key, node in graph.nodes.items():
        lines = [_came_about(edge) for edge in before[key]]
        how = Text("\n").join(lines) if lines else Text("-", style="dim")
        found.add_row(Text(key), Text(printable(node.title)), *_kind(node), how, _content(node))
    found.caption = Text("\n".join(f"note: {printable(note)}" for note in graph.notes)) or None
    return found


def run_table(report: RunReport) -> Table:
    """A run: one row a step."""
    found = _table("step", "state", "took", "inputs", "outputs", "reused", "node")
    for step in report.steps:
        execution = step.execution
        origin = step.reused_from.title if step.reused_from else ""
        if not origin and execution.cached_execution_id is not None:
            origin = f"execution {execution.cached_execution_id} (not recorded)"
        inputs = [f"{name} = {value_text(value)}" for name, value in execution.inputs.items()]
        outputs = [f"{name} = {value_text(value)}" for name, value in execution.outputs.items()]
        found.add_row(
            Text(printable(execution.step), style="bold"),
            state_text(execution.state),
            duration(execution.seconds),
            _lines([*inputs, *(f"{port.name}: {port.artifact.uri}" for port in step.inputs)]),
            _lines([*outputs, *(f"{port.name}: {port.artifact.uri}" for port in step.outputs)]),
            Text(printable(origin)),
            Text(execution.key, style="dim"),
        )
    return found


def runs_table(listed: RunList) -> Table:
    """The latest runs; the caption says when there are more."""
    found = _table("run", "namespace", "started", "took", "steps", "states")
    for run in listed.runs:
        states = [
            state_text(state).append(f" {run.states[state]}") for state in State if run.states.get(state)
        ]
        found.add_row(
            Text(printable(run.run), style="bold"),
            Text(printable(run.namespace)),
            moment(run.started_at or run.created_at),
            duration(run.seconds),
            str(run.steps),
            Text(", ").join(states),
        )
    if listed.more:
        found.caption = f"the latest {len(listed.runs)}; there are more"
    return found


def _table(*columns: str) -> Table:
    made = Table(caption_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in {"took", "steps"} else "left")
    return made


def _lines(lines: list[str]) -> Text:
    return Text("\n".join(printable(line) for line in lines))


def _came_about(edge: Edge) -> Text:
    relation = {
        "produced": "produced by",
        "handed on": "handed on by",
        "used by": "used",
        "reused by": "reused",
        "same value": "same value as in",
    }[edge.relation.value]
    name = f" ({printable(edge.name)})" if edge.name else ""
    return Text(f"{relation} {edge.source}{name}")


def _kind(node: Node) -> tuple[Text, str]:
    if isinstance(node, Execution):
        return state_text(node.state), duration(node.seconds)
    if isinstance(node, Artifact):
        return Text(printable(node.type)), ""
    return Text("parameter"), ""


def _content(node: Node) -> Text:
    if isinstance(node, Parameter):
        return Text(value_text(node.value))
    if isinstance(node, Artifact):
        return Text(printable(node.uri))
    inputs = [f"{name} = {value_text(value)}" for name, value in node.inputs.items()]
    return _lines(inputs)
