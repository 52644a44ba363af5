from datetime import UTC, datetime, timedelta

import pytest

from cache_server.sweeper import is_claimed, is_overdue
from memopod.steps import names

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAR = ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"]


def held(sample, **annotations):
    pod = sample("4.1.2", "parameters.make.admission")["request"]["object"]
    pod["spec"]["schedulingGates"] = [{"name": names.GATE}]
    pod["metadata"]["annotations"] = annotations
    pod["status"] = {"phase": "Pending"}
    return pod


def test_a_pod_is_overdue_after_its_time_and_the_grace(sample):
    pod = held(sample, **{names.HOLD_UNTIL: "2026-01-01T00:00:00Z"})
    assert not is_overdue(pod, NOW - timedelta(seconds=1))
    assert is_overdue(pod, NOW)
    assert not is_overdue(pod, NOW, timedelta(seconds=10))
    assert is_overdue(pod, NOW + timedelta(seconds=10), timedelta(seconds=10))


@pytest.mark.parametrize("until", ["never", "", "2026-01-01T00:00:00", "2026-01-01T01:00:00Z", *FAR])
def test_a_held_pod_without_a_credible_time_is_overdue(sample, until):
    pod = held(sample, **{names.HOLD_UNTIL: until})
    assert is_overdue(pod, NOW, timedelta(minutes=5))
    assert is_overdue(held(sample), NOW, timedelta(minutes=5))


def test_a_claimed_pod_is_left_to_who_claimed_it_for_a_while(sample):
    pod = held(sample, **{names.CLAIMED_BY: "somebody/with/slashes/2026-01-01T00:00:00Z"})
    assert is_claimed(pod, NOW + timedelta(seconds=15))
    assert not is_claimed(pod, NOW + timedelta(seconds=16))


@pytest.mark.parametrize("claim", ["", "somebody", "/", *FAR, *(f"x/{far}" for far in FAR)])
def test_a_claim_that_nobody_makes_good_is_void(sample, claim):
    assert not is_claimed(held(sample, **{names.CLAIMED_BY: claim}), NOW)


def test_a_pod_that_is_not_held_is_never_overdue(sample):
    pod = held(sample)
    pod["spec"]["schedulingGates"] = [{"name": "another"}]
    assert not is_overdue(pod, NOW)
    pod = held(sample)
    pod["status"]["phase"] = "Succeeded"
    assert not is_overdue(pod, NOW)
