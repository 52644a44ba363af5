import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_writer.fitting import SHORTENED, shortened, storable
from metadata_writer.records import Input, Output, Run, State, StepRecord

STEP = StepRecord(
    external_id="uid-1/n",
    run=Run("run-1", "pipelines", "uid-1", "daily"),
    type_name="components.train",
    component_id="train",
    state=State.COMPLETE,
    custom={"input:x": "1", "retries": 2},
    inputs=(Input("in", "s3://b/in"),),
    outputs=(Output("model", "Model", "s3://b/model", {"name": "model"}),),
)
TEXTS = st.text(alphabet=st.characters(), max_size=400)  # NUL and halves of pairs among them
CUSTOM = st.dictionaries(TEXTS, TEXTS | st.integers(), max_size=4)
RECORDS = st.builds(
    StepRecord,
    external_id=TEXTS,
    run=st.builds(Run, st.just("r"), st.just("n"), st.just("u"), st.none() | TEXTS),
    type_name=TEXTS,
    component_id=TEXTS,
    state=st.just(State.COMPLETE),
    custom=CUSTOM,
    inputs=st.tuples(st.builds(Input, TEXTS, TEXTS)),
    outputs=st.tuples(st.builds(Output, TEXTS, TEXTS, TEXTS, CUSTOM)),
)


def names_of(record):
    return [
        record.external_id, record.type_name, record.run.pipeline or "", *record.custom,
        *(n for o in record.outputs for n in (o.type_name, *o.custom, f"{record.external_id}/{o.name}")),
    ]  # fmt: skip


@given(RECORDS)
def test_whatever_a_record_holds_it_can_be_stored_and_to_make_it_so_twice_changes_nothing(record):
    fit = storable(record)
    assert storable(fit) is fit
    assert max(map(len, names_of(fit))) <= 255
    assert "\0" not in repr(fit)
    for text in names_of(fit):
        text.encode()
    small = shortened(fit)
    assert shortened(small) == small
    assert storable(small) is small


def test_a_record_as_usual_is_left_as_it_is():
    assert storable(STEP) is STEP
    assert shortened(STEP) == STEP


def test_names_that_are_too_long_end_in_a_digest_that_tells_them_apart():
    long = [f"{'n' * 300}{end}" for end in "ab"]
    custom = {f"input:{name}": "1" for name in long}
    outputs = tuple(dataclasses.replace(STEP.outputs[0], name=name) for name in long)
    record = storable(dataclasses.replace(STEP, custom=custom, outputs=outputs))
    assert len(record.custom) == 2
    assert record.outputs[0].name != record.outputs[1].name


@pytest.mark.parametrize("text", ["x" * 10_000, "\\" * 3_000, "ü" * 3_000, "plain"])
def test_a_text_that_no_index_holds_is_cut_and_says_so(text):
    record = shortened(dataclasses.replace(STEP, custom={"input:x": text, "input:y": "1"}))
    value = record.custom["input:x"]
    # PostgreSQL's index has room for 2,704 bytes; a backslash is stored as four.
    assert len(value.encode()) + 3 * value.count("\\") + len("input:x") <= 2_600
    if text == "plain":
        assert record.custom == {"input:x": "plain", "input:y": "1"}
    else:
        assert value.startswith(text[:500])
        assert f"({len(text.encode())} bytes, sha256 " in value
        assert record.custom[SHORTENED] == "input:x"


def test_names_that_a_database_takes_for_one_are_told_apart():
    custom = {"input:n": "1", "input:N": "2", "input:n ": "3"}
    outputs = tuple(dataclasses.replace(STEP.outputs[0], name=name) for name in ("model", "Model"))
    record = storable(dataclasses.replace(STEP, custom=custom, outputs=outputs))
    for names in (list(record.custom), [o.name for o in record.outputs]):
        assert len({name.rstrip().casefold() for name in names}) == len(names)
    assert record.custom["input:N"] == "2"
    assert sorted(record.custom.values()) == ["1", "2", "3"]
