"""How old an entry may be: ISO 8601 durations, and the rule that combines what everybody allows.

The durations are those that Kubeflow's cache server reads (annotation `max_cache_staleness`):
`PnYnMnWnDTnHnMnS` with fractions, a day of 24 hours, a month of 730.4841667 and a year of 8765.81.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

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

    None when there is no limit: no annotation, or one of more than a century. Text that is no duration,
    or a negative one, is no limit in Kubeflow's annotation, as it is to Kubeflow's cache server; in
    memopod's it is 0: nobody knows what was meant, so nothing is reused.
    """
    if names.MAX_STALENESS in annotations:
        return _strict(annotations[names.MAX_STALENESS])
    seconds = parse_duration(annotations.get(names.KFP_MAX_STALENESS, ""))
    return seconds if seconds is not None and 0 <= seconds <= _LONGEST else None


def _strict(text: str) -> float | None:
    seconds = parse_duration(text)
    if seconds is None or seconds < 0:
        return 0.0
    return None if seconds > _LONGEST else seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessRules:
    """How old an entry may be, in seconds; None is no limit.

    `default` is for a step that says nothing, `maximum` for every step, and `mutable_tag` for a step with
    an image that is named by a tag.
    """

    default: float | None = None
    maximum: float | None = None
    mutable_tag: float | None = None

    def within(self, annotations: Mapping[str, str]) -> "StalenessRules":
        """These rules, tightened by the annotations of a Namespace; text that is no duration is 0."""

        def given(name: str) -> float | None:
            return _strict(annotations[name]) if name in annotations else None

        default = given(names.NAMESPACE_DEFAULT_STALENESS)
        return StalenessRules(
            default=self.default if default is None else default,
            maximum=_least(self.maximum, given(names.NAMESPACE_MAXIMUM_STALENESS)),
            mutable_tag=_least(self.mutable_tag, given(names.NAMESPACE_TAG_STALENESS)),
        )


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def effective(asked: float | None, *, default: float | None, cap: float | None) -> float | None:
    """Maximum age in seconds, given what the step asks, the cluster's default and its cap.

    None is no limit; a cap limits that too. (Kubeflow's server does not cap an absent request.)
    """
    return _least(default if asked is None else asked, cap)


def is_fresh(age: float, *limits: float | None) -> bool:
    """Whether something of this age in seconds is within all limits; a limit of 0 disables reuse."""
    return all(limit is None or (limit > 0 and age <= limit) for limit in limits)
