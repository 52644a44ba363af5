from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memopod.steps import read_step
from memopod.steps.framing import canonical, frame
from memopod.steps.seal import is_sealed, seal

SECRET = b"s" * 32


@pytest.fixture
def step(make_pod):
    return read_step(make_pod(), namespace="kubeflow")


def test_a_seal_holds_for_its_step_and_time(step):
    value = seal(SECRET, step, "key", 1000)
    assert is_sealed(SECRET, step, "key", value, 1000.0)
    assert is_sealed(SECRET, step, "key", value, 1060.0)
    assert is_sealed(SECRET, step, "key", value, 940.0)


@pytest.mark.parametrize("change", [{"namespace": "other"}, {"pod_name": "other"}, {"workflow_uid": "other"}])
def test_a_seal_does_not_hold_for_another_step(step, change):
    value = seal(SECRET, step, "key", 1000)
    assert not is_sealed(SECRET, replace(step, **change), "key", value, 1000.0)


def test_a_seal_does_not_hold_for_another_key_secret_or_time(step):
    value = seal(SECRET, step, "key", 1000)
    assert not is_sealed(SECRET, step, "other", value, 1000.0)
    assert not is_sealed(b"t" * 32, step, "key", value, 1000.0)
    assert not is_sealed(SECRET, step, "key", value, 1061.0)
    assert not is_sealed(SECRET, step, "key", "1001" + value[4:], 1000.0)


@given(value=st.none() | st.text())
def test_what_is_no_seal_is_refused_without_a_crash(value):
    from memopod.steps.argo import Step

    step = Step(
        namespace="n", pod_name="p", pod_uid="", workflow="w", workflow_uid="u",
        node_id="i", node_name="n", template={}, pod={},
    )  # fmt: skip
    assert not is_sealed(SECRET, step, "key", value, 1000.0)


texts = st.text(alphabet=st.characters())


@given(first=st.lists(texts | st.binary()), second=st.lists(texts | st.binary()))
def test_different_lists_are_framed_differently(first, second):
    def as_bytes(parts):
        return [p.encode("utf-8", "surrogatepass") if isinstance(p, str) else p for p in parts]

    assert (frame(*first) == frame(*second)) == (as_bytes(first) == as_bytes(second))


def test_the_order_of_keys_does_not_matter_and_the_type_of_numbers_does():
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert len({canonical(1), canonical(1.0), canonical("1"), canonical(True)}) == 4
