import pytest
from hypothesis import given
from hypothesis import strategies as st

from memopod.kube import CONFIG_MAPS, PODS
from memopod.sandbox.apiserver.selectors import all_met, label_selector, matcher, parse_labels
from memopod.sandbox.apiserver.statuses import StatusError

KEYS = st.sampled_from(["app", "memopod.io/step", "tier"])
VALUES = st.sampled_from(["", "a", "b-1", "held"])
LABELS = st.dictionaries(KEYS, VALUES)


def selects(selector, labels):
    return all_met(parse_labels(selector), labels)


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ("", {}, True),
        ("app", {"app": ""}, True),
        ("app", {}, False),
        ("!app", {}, True),
        ("!app", {"app": "a"}, False),
        ("app=a", {"app": "a"}, True),
        ("app==a", {"app": "b"}, False),
        ("app!=a", {}, True),
        ("app!=a", {"app": "a"}, False),
        ("app in (a, b)", {"app": "b"}, True),
        ("app in (a,b)", {}, False),
        ("app notin (a,b)", {}, True),
        ("app notin (a,b)", {"app": "a"}, False),
        ("app in (a,b),tier,!gone", {"app": "a", "tier": "x"}, True),
        ("memopod.io/step=held , app = a", {"memopod.io/step": "held", "app": "a"}, True),
    ],
)
def test_a_label_selector_means_what_kubernetes_says(selector, labels, expected):
    assert selects(selector, labels) is expected


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "a >> 1", ",", "a in (b", "=x"])
def test_a_malformed_label_selector_is_refused(selector):
    with pytest.raises(StatusError) as refusal:
        parse_labels(selector)
    assert refusal.value.code == 400


@given(KEYS, VALUES, LABELS)
def test_equality_and_its_negation_are_opposites(key, value, labels):
    assert selects(f"{key}={value}", labels) is not selects(f"{key}!={value}", labels)


@given(KEYS, st.lists(VALUES, min_size=1), LABELS)
def test_membership_and_its_negation_are_opposites(key, values, labels):
    among = ",".join(values)
    assert selects(f"{key} in ({among})", labels) is not selects(f"{key} notin ({among})", labels)
    assert selects(f"{key} in ({among})", labels) is any(
        selects(f"{key}={value}", labels) for value in values
    )


@given(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4), LABELS)
def test_requirements_are_joined_by_and(pairs, labels):
    parts = [f"{key}={value}" for key, value in pairs]
    assert selects(",".join(parts), labels) is all(selects(part, labels) for part in parts)


@given(LABELS, LABELS)
def test_a_selector_object_says_the_same_as_its_text(wanted, labels):
    by_object = all_met(label_selector({"matchLabels": wanted}), labels)
    assert by_object is selects(",".join(f"{key}={value}" for key, value in wanted.items()), labels)


def test_expressions_of_a_selector_object_are_followed():
    selector = {
        "matchExpressions": [
            {"key": "app", "operator": "In", "values": ["a"]},
            {"key": "tier", "operator": "NotIn", "values": ["x"]},
            {"key": "here", "operator": "Exists"},
            {"key": "gone", "operator": "DoesNotExist"},
        ]
    }
    requirements = label_selector(selector)
    assert all_met(requirements, {"app": "a", "here": ""})
    assert not all_met(requirements, {"app": "a", "here": "", "gone": ""})
    assert not all_met(requirements, {"app": "a", "here": "", "tier": "x"})


def test_fields_select_by_name_and_by_what_pods_offer():
    pod = {"metadata": {"name": "a", "namespace": "n"}, "status": {"phase": "Running"}}
    select = matcher(PODS, labels="", fields="metadata.name=a,status.phase!=Failed", namespace="n")
    assert select(pod)
    assert not matcher(PODS, labels="", fields="spec.nodeName=x", namespace=None)(pod)
    assert not matcher(PODS, labels="", fields="", namespace="other")(pod)


@pytest.mark.parametrize("fields", ["status.phase=Running", "metadata.name"])
def test_a_field_that_a_kind_does_not_offer_is_refused(fields):
    with pytest.raises(StatusError):
        matcher(CONFIG_MAPS, labels="", fields=fields, namespace=None)
