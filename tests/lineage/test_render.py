import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from memopod.lineage import down, render, runs, show, up
from memopod.lineage.model import Direction, Edge, Execution, Graph, Parameter, Relation, State
from memopod.lineage.render.wording import duration, moment, printable, value_text


def text(answer, *, width=200):
    out = io.StringIO()
    Console(file=out, width=width).print(answer)
    return out.getvalue()


def graph_of(links, *, size=6, direction=Direction.UP):
    nodes = {}
    for number in range(size):
        execution = Execution(id=number, step=f"s{number}", run="r", component="c", state=State.COMPLETE)
        nodes[execution.key] = execution
    edges = dict.fromkeys(
        Edge(source=f"execution:{a}", target=f"execution:{b}", relation=Relation.REUSED) for a, b in links
    )
    return Graph(direction=direction, roots=("execution:0",), nodes=nodes, edges=tuple(edges))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))), st.sampled_from(Direction))
def test_any_graph_is_a_tree_in_which_a_node_is_spelled_out_once(links, direction):
    graph = graph_of(links, direction=direction)
    lines = text(render.tree(graph)).splitlines()
    whole = [line for line in lines if "[execution:" in line and "see above" not in line]
    assert len(whole) == len(set(whole)) <= 6
    assert len(lines) <= 1 + len(graph.edges)


def test_a_chain_longer_than_the_recursion_limit_is_rendered():
    size = 1500
    graph = graph_of([(number + 1, number) for number in range(size - 1)], size=size)
    assert "execution:1499" in text(render.tree(graph), width=4 * size + 100)


async def test_a_tree_reads_from_the_output_to_what_really_ran(client):
    shown = text(render.tree(await up(client, "message-2/comp:Output")))
    first, second, _, third, _ = [line.rstrip() for line in shown.splitlines()]
    assert first == 'message-2/comp:Output = "My ML pipeline running"'
    assert second.startswith("└── handed on by message-2/comp CACHED <1 s [execution:")
    assert third.startswith("    └── reused message-1/comp COMPLETE 3.0 s [execution:")


async def test_a_table_has_a_row_for_each_node_and_says_how_it_came_about(client):
    graph = await up(client, "iris-2/train")
    shown = text(render.table(graph))
    for key in graph.nodes:
        assert f"│ {key} " in shown
    assert "used artifact:" in shown
    assert "handed on by execution:" in shown


async def test_limits_are_said_in_every_form(client):
    graph = await up(client, "iris-1/evaluate", 1)
    note = "stopped at depth 1: 2 nodes not followed further"
    assert note in text(render.tree(graph))
    assert note in text(render.table(graph))
    assert note in render.dot(graph)
    assert note in render.mermaid(graph)
    assert note in render.as_document(graph)["notes"]


async def test_a_run_is_shown_with_what_it_reused(client):
    report = await show(client, "iris-2")
    assert "reused iris-1/load COMPLETE 2.0 s" in text(render.run_tree(report))
    assert "iris-1/load" in text(render.run_table(report))


async def test_what_was_reused_but_is_not_recorded_is_said(client):
    report = await show(client, "odd-1")
    assert "reused execution 987654, which is not recorded" in text(render.run_tree(report))
    assert "execution 987654 (not recorded)" in text(render.run_table(report))


async def test_an_artifact_that_is_not_recorded_is_said(client):
    shown = text(render.run_tree(await show(client, "odd-1")))
    assert "input third: an artifact that is not recorded" in shown


async def test_values_can_neither_write_to_the_terminal_nor_be_markup(client):
    report = await show(client, "odd-1")
    for shown in (text(render.run_tree(report)), text(render.run_table(report))):
        assert "\x1b" not in shown
        assert r'"\x1b[31m[bold]red[/bold]\nnext"' in shown


async def test_a_long_value_is_cut_on_a_terminal_and_whole_in_json(client):
    report = await show(client, "odd-1")
    assert "… (5,000 characters)" in text(render.run_tree(report))
    outputs = [step["outputs"] for step in render.as_document(report)["steps"]]
    assert {"text": "x" * 5000} in outputs


async def test_every_answer_is_a_json_document(client):
    answers = [
        await runs(client, 100),
        await show(client, "odd-1"),
        await up(client, "iris-2/evaluate:accuracy"),
        await down(client, "iris-1/train:model"),
    ]
    for answer in answers:
        document = render.as_document(answer)
        assert json.loads(json.dumps(document, allow_nan=False)) == document


async def test_a_document_joins_its_nodes_by_the_names_that_up_and_down_take(client):
    document = render.as_document(await up(client, "iris-2/train"))
    named = {node["node"] for node in document["nodes"]}
    assert {edge["source"] for edge in document["edges"]} <= named
    for name in named:
        assert (await up(client, name)).roots == (name,)


def test_a_number_that_json_lacks_becomes_text():
    value = Parameter(execution_id=1, name="loss", value=float("nan"), title="r/s:loss")
    graph = Graph(direction=Direction.UP, roots=(value.key,), nodes={value.key: value}, edges=())
    assert render.as_document(graph)["nodes"][0]["value"] == "nan"


hostile = 'a"b\\c<d>#quot;\n"]'


def hostile_graph():
    first = Execution(id=1, step=hostile, run="r", component="c", state=State.COMPLETE)
    second = Parameter(execution_id=1, name=hostile, value=hostile, title=hostile)
    edge = Edge(source=first.key, target=second.key, relation=Relation.SAME_VALUE, name=hostile)
    return Graph(
        direction=Direction.UP,
        roots=(second.key,),
        nodes={second.key: second, first.key: first},
        edges=(edge,),
        notes=(hostile,),
    )


def test_dot_quotes_whatever_a_name_holds():
    drawn = render.dot(hostile_graph())
    statements = [line for line in drawn.splitlines() if line.startswith('  "')]
    assert len(statements) == 3
    for line in statements:
        bare = line.replace("\\\\", "").replace('\\"', "")
        assert bare.count('"') % 2 == 0
        assert bare.endswith("];")
    assert "style=dashed" in drawn


def test_mermaid_quotes_whatever_a_name_holds():
    drawn = render.mermaid(hostile_graph()).splitlines()
    assert len(drawn) == 5
    assert drawn[2] == '  n1["r/a#quot;b\\c#lt;d#gt;#35;quot;\\n#quot;]<br/>COMPLETE"]'
    assert drawn[3].startswith('  n1 -. "same value a#quot;b')


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, ""),
        (0, "<1 s"),
        (0.85, "850 ms"),
        (0.9996, "1.0 s"),
        (3.21, "3.2 s"),
        (59.97, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7380, "2 h 03 min"),
    ],
)
def test_a_duration_reads_in_the_unit_that_fits(seconds, expected):
    assert duration(seconds) == expected


def test_a_time_is_utc():
    assert moment(1_760_000_000_000) == "2025-10-09 08:53:20Z"
    assert moment(None) == ""


@given(st.text(), st.integers(5, 80))
def test_a_value_is_one_printable_line_of_bounded_length(value, width):
    shown = value_text(value, width)
    assert shown.isprintable()
    assert len(shown) <= width + len(f" ({len(value):,} characters)")
    assert printable(value).isprintable()
