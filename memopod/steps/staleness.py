"""How old an entry may be: ISO 8601 durations, and the rule that combines what everybody allows.

The durations are those that Kubeflow's cache server reads (annotation `max_cache_staleness`):
`PnYnMnWnDTnHnMnS` with fractions, a day of 24 hours, a month of 730.4841667 and a year of 8765.81.
"""

import re
from collections.abc import Mapping

from memopod.steps import names

_HOUR = 3600.0
_LONGEST = 100 * 8765.81 * _HOUR
_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(
    rf"(-)?P(?:{_NUMBER}Y)?(?:{_NUMBER}M)?(?:{_NUMBER}W)?(?:{_NUMBER}D)?"
    rf"(?:T(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?",
    re.ASCII,
)
_SECONDS = (8765.81 * _HOUR, 730.4841667 * _HOUR, 168 * _HOUR, 24 * _HOUR, _HOUR, 60.0, 1.0)


def parse_duration(text: str) -> float | None:
    """Seconds of an ISO 8601 duration; None for text that is none (`""`, `P`, `PT`, `P1DT`)."""
    match = _DURATION.fullmatch(text)
    if match is None or text.endswith(("P", "T")):
        return None
    total = sum(float(n) * s for n, s in zip(match.groups()[1:], _SECONDS, strict=True) if n)
    return -total if match.group(1) else total


def requested(annotations: Mapping[str, str]) -> float | None:
    """Maximum age in seconds that a step's annotations ask for, memopod's before Kubeflow's.

    None when there is no limit: no annotation, one that is no duration, or that is negative or longer
    than a century.
    """
    for name in (names.MAX_STALENESS, names.KFP_MAX_STALENESS):
        if name in annotations:
            seconds = parse_duration(annotations[name])
            return seconds if seconds is not None and 0 <= seconds <= _LONGEST else None
    return None


def effective(asked: float | None, *, default: float | None, cap: float | None) -> float | None:
    """Maximum age in seconds, given what the step asks, the cluster's default and its cap.

    None is no limit; a cap limits that too. (Kubeflow's server does not cap an absent request.)
    """
    limit = default if asked is None else asked
    if cap is None:
        return limit
    return cap if limit is None else min(limit, cap)


def is_fresh(age: float, *limits: float | None) -> bool:
    """Whether something of this age in seconds is within all limits; a limit of 0 disables reuse."""
    return all(limit is None or (limit > 0 and age <= limit) for limit in limits)
