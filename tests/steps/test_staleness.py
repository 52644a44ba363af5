import pytest
from hypothesis import given
from hypothesis import strategies as st

from memopod.steps.staleness import effective, is_fresh, parse_duration, requested

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
    assert requested({"memopod.io/max-staleness": "-P1D"}) is None
    assert requested({"memopod.io/max-staleness": "soon"}) is None
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
