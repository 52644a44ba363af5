"""Lineage as a tree. A node that can be reached in several ways is spelled out once, and named again."""

from rich.text import Text
from rich.tree import Tree

from memopod.lineage.model import Execution, Graph, RunReport, StepReport
from memopod.lineage.render.wording import (
    artifact_text,
    edge_text,
    node_text,
    printable,
    value_text,
)


def tree(graph: Graph) -> Tree:
    """A graph of `up` or `down` from its root; limits and gaps are said below it."""
    onward = graph.onward()
    shown: set[str] = set()
    top = Tree(Text("lineage"), hide_root=True)
    # A stack and not recursion: a chain may be longer than Python's recursion limit.
    waiting: list[tuple[Tree, Text, str]] = [(top, Text(), key) for key in reversed(graph.roots)]
    while waiting:
        parent, lead, key = waiting.pop()
        node = graph.nodes[key]
        line = lead + node_text(node)
        if key in shown:
            parent.add(line.append(" (see above)", style="dim"))
            continue
        shown.add(key)
        if key in graph.unfollowed:
            line.append(" (not followed to the end)", style="dim")
        branch = parent.add(line)
        if isinstance(node, Execution):
            _add_inputs(branch, node)
        for edge, other in reversed(onward[key]):
            waiting.append((branch, edge_text(edge, graph.direction), other))
    for note in graph.notes:
        top.add(Text(f"note: {printable(note)}", style="yellow"))
    return top


def run_tree(report: RunReport) -> Tree:
    """A run: its steps, their inputs and outputs, and what was reused."""
    title = Text.assemble((printable(report.run), "bold"))
    if report.namespace:
        title.append(f" in {printable(report.namespace)}", style="dim")
    top = Tree(title)
    for step in report.steps:
        _add_step(top, step)
    if not report.steps:
        top.add(Text("no step is recorded yet", style="dim"))
    return top


def _add_step(top: Tree, step: StepReport) -> None:
    execution = step.execution
    branch = top.add(node_text(execution))
    if step.reused_from is not None:
        branch.add(Text("reused ", style="italic dim") + node_text(step.reused_from))
    elif execution.cached_execution_id is not None:
        gone = f"reused execution {execution.cached_execution_id}, which is not recorded"
        branch.add(Text(gone, style="yellow"))
    if execution.reason:
        branch.add(Text(f"because: {printable(execution.reason)}", style="dim"))
    _add_inputs(branch, execution)
    for side, names in (("input", execution.unresolved_inputs), ("output", execution.unresolved_outputs)):
        for name in names:
            branch.add(Text(f"{side} {printable(name)}: an artifact that is not recorded", style="yellow"))
    for port in step.inputs:
        branch.add(Text(f"input {printable(port.name)}: ", style="italic dim") + artifact_text(port.artifact))
    for name, value in execution.outputs.items():
        branch.add(Text.assemble((f"output {printable(name)} = ", "italic dim"), value_text(value)))
    for port in step.outputs:
        branch.add(
            Text(f"output {printable(port.name)}: ", style="italic dim") + artifact_text(port.artifact)
        )


def _add_inputs(branch: Tree, execution: Execution) -> None:
    for name, value in execution.inputs.items():
        branch.add(Text.assemble((f"input {printable(name)} = ", "italic dim"), value_text(value)))
