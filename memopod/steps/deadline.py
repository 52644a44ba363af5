"""How long a step may still take, as Argo says it: `timeout`, `pendingTimeout` and ARGO_DEADLINE."""

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any

from memopod.steps import names
from memopod.steps.argo import Step, containers, environment
from memopod.steps.times import from_text

_GO_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+", re.ASCII)
_GO_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NO_DEADLINES: AbstractSet[str | None] = frozenset((None, "", "0001-01-01T00:00:00Z"))
"""Go's zero time is how Argo writes that there is none."""


def parse_go_duration(text: str) -> float | None:
    """Seconds of a Go duration (`1h15m`) or of a bare number of seconds; None for anything else."""
    if re.fullmatch(r"\d+", text, re.ASCII):
        return float(text)
    if not _GO_DURATION.fullmatch(text.replace("µ", "u")):
        return None
    return sum(float(n) * _UNITS[unit] for n, unit in _GO_PART.findall(text.replace("µ", "u")))


def seconds_left(step: Step, now: datetime) -> float | None:
    """Seconds until the first deadline of the step or its workflow; None when there is none.

    A deadline that cannot be read counts as passed: such a step must not be made to wait.
    """
    deadlines = {environment(c, names.ENV_DEADLINE) for c in containers(step.pod)}
    return first_left(template_waits(step.template or {}), deadlines, now)


def template_waits(template: Mapping[str, Any]) -> Iterator[float]:
    """Seconds that a template allows its step, for all of it and for waiting."""
    for name in ("timeout", "pendingTimeout"):
        text = str(template.get(name) or "")
        if text:
            seconds = parse_go_duration(text)
            yield 0.0 if seconds is None else seconds


def first_left(waits: Iterable[float], deadlines: AbstractSet[str | None], now: datetime) -> float | None:
    """As `seconds_left`, of what a template allows and the values of ARGO_DEADLINE."""
    moments = [from_text(deadline) for deadline in deadlines - _NO_DEADLINES]
    left = [0.0 if moment is None else (moment - now).total_seconds() for moment in moments]
    return min([*waits, *left], default=None)
