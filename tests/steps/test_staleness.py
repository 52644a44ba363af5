import pytest
from hypothesis import given
from hypothesis import strategies as st

from memopod.steps import names
from memopod.steps.staleness import StalenessRules, effective, is_fresh, parse_duration, requested

DAY = 86400.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("P30D", 30 * DAY),
        ("P0D", 0.0),
        ("PT1H30M", 5400.0),
        ("P1W", 7 * DAY),
        ("P1Y", 8765.81 * 3600),
        ("P1M", 730.4841667 * 3600),
        ("PT0.5S", 0.5),
        ("P1DT1S", DAY + 1),
        ("-P1D", -DAY),
        ("", None),
        ("P", None),
        ("PT", None),
        ("P1DT", None),
        ("30D", None),
        ("P1H", None),
        ("P1d", None),
        (" P1D", None),
    ],
)
def test_durations_are_read_as_kubeflow_reads_them(text, seconds):
    assert parse_duration(text) == seconds


@given(st.text())
def test_any_text_is_a_duration_or_none(text):
    result = parse_duration(text)
    assert result is None or isinstance(result, float)


def test_memopods_annotation_wins_over_kubeflows():
    annotations = {"pipelines.kubeflow.org/max_cache_staleness": "P1D"}
    assert requested(annotations) == DAY
    assert requested({**annotations, "memopod.io/max-staleness": "P2D"}) == 2 * DAY
    assert requested({}) is None
    assert requested({"memopod.io/max-staleness": "P99999999999999999999D"}) is None
    assert requested({"memopod.io/max-staleness": "P" + "9" * 400 + "D"}) is None


def test_a_cap_limits_what_is_asked_and_what_is_not():
    assert effective(None, default=None, cap=None) is None
    assert effective(None, default=5.0, cap=None) == 5.0
    assert effective(9.0, default=5.0, cap=None) == 9.0
    assert effective(9.0, default=None, cap=7.0) == 7.0
    assert effective(None, default=None, cap=7.0) == 7.0


def test_all_limits_must_hold_and_zero_disables():
    assert is_fresh(10.0, None, 10.0)
    assert not is_fresh(10.1, None, 10.0)
    assert not is_fresh(0.0, 0.0)
    assert is_fresh(1e9)


@pytest.mark.parametrize("text", ["soon", "", "-P1D", "30"])
def test_what_cannot_be_read_allows_nothing_where_kubeflow_does_not_read_it(text):
    assert requested({names.MAX_STALENESS: text}) == 0
    assert requested({names.KFP_MAX_STALENESS: text}) is None
    assert StalenessRules().within({names.NAMESPACE_MAXIMUM_STALENESS: text}).maximum == 0


CLUSTER = StalenessRules(default=30 * DAY, maximum=60 * DAY, mutable_tag=7 * DAY)


def test_a_namespace_can_tighten_what_the_cluster_allows_and_not_widen_it():
    tighter = {
        names.NAMESPACE_MAXIMUM_STALENESS: "P10D",
        names.NAMESPACE_TAG_STALENESS: "P1D",
        names.NAMESPACE_DEFAULT_STALENESS: "P2D",
    }
    assert CLUSTER.within(tighter) == StalenessRules(default=2 * DAY, maximum=10 * DAY, mutable_tag=DAY)
    wider = {names.NAMESPACE_MAXIMUM_STALENESS: "P1Y", names.NAMESPACE_TAG_STALENESS: "P1Y"}
    assert CLUSTER.within(wider) == CLUSTER
    assert CLUSTER.within({}) == CLUSTER
    open_rules = StalenessRules().within(tighter)
    assert (open_rules.maximum, open_rules.mutable_tag) == (10 * DAY, DAY)


def test_a_namespaces_default_is_within_the_clusters_cap():
    rules = CLUSTER.within({names.NAMESPACE_DEFAULT_STALENESS: "P1Y"})
    assert effective(None, default=rules.default, cap=rules.maximum) == 60 * DAY
