import copy

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memopod.kube import PODS, Invalid, escape, set_metadata_ops

KEYS = st.sampled_from(["a", "memopod.io/step", "x~y/z", "~1"])
MAPS = st.none() | st.dictionaries(KEYS, st.text(max_size=3))
CHANGES = st.dictionaries(KEYS, st.none() | st.text(max_size=3))


def test_keys_are_escaped_as_pointers_demand():
    assert escape("memopod.io/a~b") == "memopod.io~1a~0b"


@given(MAPS, MAPS, CHANGES, CHANGES)
def test_applied_to_the_object_the_operations_set_what_was_asked_and_nothing_else(
    labels, annotations, new_labels, new_annotations
):
    metadata = {"labels": labels, "annotations": annotations, "resourceVersion": "7"}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    before = copy.deepcopy(metadata)
    operations = set_metadata_ops(metadata, labels=new_labels, annotations=new_annotations)
    after = jsonpatch.apply_patch({"metadata": metadata}, operations)["metadata"]
    for field, old, new in (("labels", labels, new_labels), ("annotations", annotations, new_annotations)):
        wanted = {key: value for key, value in {**(old or {}), **new}.items() if value is not None}
        assert after.get(field, {}) == wanted
    assert metadata == before


def test_nothing_to_do_gives_no_operation():
    assert set_metadata_ops({"labels": {}}, labels={"absent": None}, annotations={}) == []


def test_an_object_that_is_not_stored_yet_is_not_tested_for_its_version():
    assert set_metadata_ops({}, labels={"a": "b"}) == [
        {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}
    ]


async def test_a_map_that_somebody_created_meanwhile_is_not_overwritten(client):
    body = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "main", "image": "x"}]}}
    read = await client.create(PODS, body, namespace="pipelines")
    await client.patch(PODS, "a", {"metadata": {"labels": {"theirs": "1"}}}, namespace="pipelines")
    with pytest.raises(Invalid):
        await client.patch(
            PODS, "a", set_metadata_ops(read["metadata"], labels={"ours": "1"}), namespace="pipelines"
        )
