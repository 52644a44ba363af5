import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.mlmd import from_properties, from_value, to_value

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = texts | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans()
json = st.recursive(
    texts | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(scalars | st.dictionaries(texts, json, max_size=3))
def test_a_value_comes_back_as_it_went(value):
    returned = from_value(mlmd.Value.FromString(to_value(value).SerializeToString()))
    assert (type(returned), returned) == (type(value), value)


@pytest.mark.parametrize("value", [None, [], b"bytes"])
def test_what_a_property_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="expected str, int, float, bool or dict"):
        to_value(value)


def test_an_integer_of_more_than_64_bits_is_refused():
    with pytest.raises(ValueError, match="64 bits"):
        to_value(2**63)


def test_properties_without_a_value_are_left_out():
    node = mlmd.Execution()
    node.custom_properties["text"].string_value = ""
    node.custom_properties["nothing"].SetInParent()
    assert from_properties(node.custom_properties) == {"text": ""}
