from datetime import UTC, datetime

import pytest

from memopod.steps import read_step
from memopod.steps.deadline import parse_go_duration, seconds_left

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3s", 3.0), ("1h15m", 4500.0), ("1.5h", 5400.0), ("100ms", 0.1), ("20", 20.0)]
    + [(bad, None) for bad in ("", "s", "1d", "1h 2m", "-3s", "{{x}}")],
)
def test_timeouts_are_read_as_go_reads_them(text, seconds):
    assert parse_go_duration(text) == seconds


def step_with(make_pod, deadline=None, **template):
    pod = make_pod()
    for container in pod["spec"]["containers"]:
        for variable in container["env"]:
            if deadline and variable["name"] == "ARGO_DEADLINE":
                variable["value"] = deadline
    step = read_step(pod, namespace="n")
    step.template.update(template)
    return step


def test_a_step_without_deadline_has_all_the_time(make_pod):
    assert seconds_left(step_with(make_pod), NOW) is None


def test_the_first_deadline_counts(make_pod):
    assert seconds_left(step_with(make_pod, "2026-01-01T00:01:00Z"), NOW) == 60.0
    assert seconds_left(step_with(make_pod, "2026-01-01T00:01:00Z", timeout="30s"), NOW) == 30.0
    assert seconds_left(step_with(make_pod, pendingTimeout="10s", timeout="30s"), NOW) == 10.0


def test_a_deadline_that_cannot_be_read_counts_as_passed(make_pod):
    assert seconds_left(step_with(make_pod, "tomorrow"), NOW) == 0.0
    assert seconds_left(step_with(make_pod, timeout="soon"), NOW) == 0.0
