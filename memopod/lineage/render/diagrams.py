"""Lineage as text for a diagram: Graphviz DOT and Mermaid. Arrows point the way data flowed."""

from memopod.lineage.model import Artifact, Edge, Execution, Graph, Node, Relation
from memopod.lineage.render.wording import duration, printable, value_text

_LABEL_VALUE = 40
"""Characters of a value on a node."""


def dot(graph: Graph) -> str:
    """The graph for Graphviz (`dot -Tsvg`)."""
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [fontname="sans-serif"];']
    for key, node in graph.nodes.items():
        label = "\\n".join(_dot_escape(line) for line in _label(node))
        style = ', style="bold"' if key in graph.roots else ""
        lines.append(f'  "{_dot_escape(key)}" [label="{label}", shape={_dot_shape(node)}{style}];')
    for edge in graph.edges:
        style = ", style=dashed" if _dashed(edge) else ""
        label = _dot_escape(_edge_label(edge))
        ends = f'"{_dot_escape(edge.source)}" -> "{_dot_escape(edge.target)}"'
        lines.append(f'  {ends} [label="{label}"{style}];')
    lines += [f"  // {printable(note)}" for note in graph.notes]
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(graph: Graph) -> str:
    """The graph for Mermaid, as documentation and issue trackers render it."""
    names = {key: f"n{number}" for number, key in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for key, node in graph.nodes.items():
        label = "<br/>".join(_mermaid_escape(line) for line in _label(node))
        opening, closing = _mermaid_shape(node)
        lines.append(f'  {names[key]}{opening}"{label}"{closing}')
    for edge in graph.edges:
        arrow = "-. {} .->" if _dashed(edge) else "-- {} -->"
        arrow = arrow.replace("{}", f'"{_mermaid_escape(_edge_label(edge))}"')
        lines.append(f"  {names[edge.source]} {arrow} {names[edge.target]}")
    lines += [f"  %% {printable(note)}" for note in graph.notes]
    return "\n".join(lines) + "\n"


def _label(node: Node) -> list[str]:
    if isinstance(node, Execution):
        return [node.title, f"{node.state.value} {duration(node.seconds)}".strip()]
    if isinstance(node, Artifact):
        return list(dict.fromkeys([node.title, node.type, node.uri]))
    return [node.title, value_text(node.value, _LABEL_VALUE)]


def _edge_label(edge: Edge) -> str:
    words = "used as" if edge.relation is Relation.USED and edge.name else edge.relation.value
    return f"{words} {edge.name}".strip()


def _dashed(edge: Edge) -> bool:
    return edge.relation in {Relation.SAME_VALUE, Relation.REUSED}


def _dot_shape(node: Node) -> str:
    if isinstance(node, Execution):
        return "box"
    return "cylinder" if isinstance(node, Artifact) else "note"


def _mermaid_shape(node: Node) -> tuple[str, str]:
    if isinstance(node, Execution):
        return "[", "]"
    return ("[(", ")]") if isinstance(node, Artifact) else ("([", "])")


def _dot_escape(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')


def _mermaid_escape(text: str) -> str:
    """Mermaid knows entities, written with `#`; a `#` of the text must not begin one."""
    escaped = printable(text).replace("#", "#35;")
    for character, entity in (('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("`", "#96;")):
        escaped = escaped.replace(character, entity)
    return escaped
