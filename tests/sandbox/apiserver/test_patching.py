import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memopod.sandbox.apiserver.patching import JSON_PATCH, MERGE_PATCH, merge, patched
from memopod.sandbox.apiserver.statuses import StatusError

SCALARS = st.one_of(st.booleans(), st.integers(-3, 3), st.text(max_size=3))
KEYS = st.sampled_from(["a", "b", "c"])
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, DOCUMENTS, max_size=3)
PATCHES = st.dictionaries(
    KEYS,
    st.recursive(SCALARS | st.none(), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6),
    max_size=3,
)


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_examples_of_the_merge_patch_standard_hold(target, patch, expected):
    assert merge(target, patch) == expected


@given(OBJECTS, PATCHES)
def test_a_merge_patch_applied_twice_changes_nothing_more(target, patch):
    once = merge(target, patch)
    assert merge(once, patch) == once


@given(OBJECTS, PATCHES)
def test_a_patch_leaves_the_original_as_it_is(target, patch):
    before = copy.deepcopy(target)
    patched(target, patch, MERGE_PATCH)
    assert target == before


@given(OBJECTS, KEYS, DOCUMENTS)
def test_an_added_member_is_there_and_a_removed_one_is_not(target, key, value):
    added = patched(target, [{"op": "add", "path": f"/{key}", "value": value}], JSON_PATCH)
    assert added[key] == value
    assert key not in patched(added, [{"op": "remove", "path": f"/{key}"}], JSON_PATCH)


@pytest.mark.parametrize(
    "operations",
    [
        [{"op": "add", "path": "/absent/key", "value": 1}],
        [{"op": "add", "path": "/text/key", "value": 1}],
        [{"op": "remove", "path": "/absent"}],
        [{"op": "replace", "path": "/absent", "value": 1}],
        [{"op": "test", "path": "/text", "value": "other"}],
        [{"op": "test", "path": "/absent", "value": 1}],
        [{"op": "add", "path": "/list/5", "value": 1}],
        [{"op": "replace", "path": "", "value": 1}],
    ],
)
def test_a_json_patch_that_does_not_fit_is_unprocessable(operations):
    with pytest.raises(StatusError) as refusal:
        patched({"text": "a", "list": []}, operations, JSON_PATCH)
    assert (refusal.value.code, refusal.value.reason) == (422, "Invalid")


@pytest.mark.parametrize("patch", [{}, ["add"], [{"op": "sing", "path": "/a"}], [{"path": "/a"}]])
def test_what_is_no_json_patch_is_a_bad_request(patch):
    with pytest.raises(StatusError) as refusal:
        patched({"a": 1}, patch, JSON_PATCH)
    assert refusal.value.code == 400


@pytest.mark.parametrize("kind", ["application/strategic-merge-patch+json", "application/apply-patch+yaml"])
def test_other_kinds_of_patch_are_refused_with_the_supported_ones(kind):
    with pytest.raises(StatusError) as refusal:
        patched({}, {}, kind)
    assert refusal.value.code == 415
    assert JSON_PATCH in refusal.value.message
