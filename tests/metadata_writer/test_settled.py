from hypothesis import given
from hypothesis import strategies as st

from metadata_writer.settled import NO_POD, Mark, Settled, digest

# Digests that overlap with one another's records, as real ones hardly ever do.
NODES = st.sampled_from([bytes(8), b"\1" + bytes(7), bytes(7) + b"\1", b"\1" * 8, b"node-abc"])
MARKS = st.builds(Mark, NODES, st.integers(-(2**63), 2**63 - 1), st.integers(0, 255))
WORKFLOWS = st.sampled_from([digest("a", 16), digest("b", 16)])


@given(st.lists(st.tuples(st.sampled_from(["put", "pop", "close"]), WORKFLOWS, NODES, MARKS), max_size=40))
def test_it_remembers_as_a_dictionary_does(actions):
    settled, model = Settled(), {}
    for action, workflow, node, mark in actions:
        if action == "put":
            settled.put(workflow + node, mark)
            model[workflow, node] = mark
        elif action == "pop":
            assert settled.pop(workflow + node) == model.pop((workflow, node), None)
        else:
            settled.close(workflow)
            model = {k: m for k, m in model.items() if k[0] != workflow or m.pod != NO_POD}
        assert len(settled) == len(model)
        assert settled.get(workflow + node) == model.get((workflow, node))
    assert all(settled.get(b"".join(key)) == mark for key, mark in model.items())
