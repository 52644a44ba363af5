import asyncio

from hypothesis import given
from hypothesis import strategies as st

from memopod.lineage.walk import walk

graphs = st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=4), max_size=13)


def walked(graph, start, *, depth=100, limit=100):
    asked = []

    async def neighbours(layer):
        asked.extend(layer)
        return [found for node in layer for found in graph.get(node, ())]

    return asyncio.run(walk(start, neighbours, depth=depth, limit=limit)), asked


def distances(graph, start):
    known = dict.fromkeys(start, 0)
    queue = list(known)
    for node in queue:
        for found in graph.get(node, ()):
            if found not in known:
                known[found] = known[node] + 1
                queue.append(found)
    return known


@given(graphs, st.sets(st.integers(0, 12), min_size=1, max_size=3))
def test_every_reachable_node_is_reached_once_and_asked_once_whatever_the_cycles(graph, start):
    reach, asked = walked(graph, start)
    assert set(reach.reached) == set(distances(graph, start))
    assert len(reach.reached) == len(set(reach.reached))
    assert sorted(asked) == sorted(reach.reached)
    assert not reach.at_depth
    assert not reach.at_limit


@given(graphs, st.integers(0, 12), st.integers(1, 5))
def test_depth_takes_in_exactly_the_nodes_within_it_and_names_those_not_followed(graph, start, depth):
    reach, asked = walked(graph, [start], depth=depth)
    expected = distances(graph, [start])
    assert set(reach.reached) == {node for node, steps in expected.items() if steps <= depth}
    assert set(reach.at_depth) == {node for node, steps in expected.items() if steps == depth}
    assert set(asked).isdisjoint(reach.at_depth)


@given(graphs, st.integers(0, 12), st.integers(1, 13))
def test_a_limit_is_kept_and_what_it_cut_is_counted(graph, start, limit):
    reach, _ = walked(graph, [start], limit=limit)
    everything = distances(graph, [start])
    assert len(reach.reached) == min(limit, len(everything))
    assert bool(reach.beyond) == (len(everything) > limit)
    assert bool(reach.at_limit) == bool(reach.beyond)
    assert len(reach.reached) + reach.beyond <= len(everything)
