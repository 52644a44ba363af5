from hypothesis import given
from hypothesis import strategies as st
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.mlmd import from_properties
from metadata_writer.notes import UNRESOLVED_INPUTS, UNRESOLVED_OUTPUTS, note, noted


def noted_in(execution, what=UNRESOLVED_INPUTS):
    return noted(from_properties(execution.custom_properties), what)


@given(
    st.lists(
        st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=50), min_size=1, max_size=3
    )
)
def test_what_was_noted_last_is_read_back(notes):
    execution = mlmd.Execution()
    execution.custom_properties["input:x"].string_value = "1"
    note(execution, UNRESOLVED_OUTPUTS, {"o": "s3://b/o"})
    for unresolved in notes:
        note(execution, UNRESOLVED_INPUTS, {n.encode().decode(): p for n, p in unresolved.items()})
    assert noted_in(execution) == notes[-1]
    assert noted_in(execution, UNRESOLVED_OUTPUTS) == {"o": "s3://b/o"}


def test_thousands_of_places_are_in_properties_that_an_index_holds_and_all_go_again():
    execution = mlmd.Execution()
    places = {f"in{n}": f"minio://bucket/artifacts/run-{n}/{'k' * 80}" for n in range(2_000)}
    note(execution, UNRESOLVED_INPUTS, places)
    assert noted_in(execution) == places
    texts = [value.string_value for value in execution.custom_properties.values()]
    assert max(len(text.encode()) for text in texts) < 2_100
    assert execution.custom_properties[UNRESOLVED_INPUTS].string_value.endswith(",...")
    note(execution, UNRESOLVED_INPUTS, {})
    assert not execution.custom_properties


def test_notes_of_somebody_else_are_none():
    assert noted({"unresolved_input_uris": "{", "unresolved_input_uris_1": '{"a": "s3://b/a"}'},
                 UNRESOLVED_INPUTS) == {"a": "s3://b/a"}  # fmt: skip
