"""Waiting for the identical step that runs (coalescing): pure rules, no I/O.

A step without a usable entry may wait for one of another workflow that runs right now with the same
inputs, and be reused when that has ended. Nothing here is ever a reason to reuse: who stops waiting is
decided for like any other step. Waiting for the wrong step costs time, so every wait has an end.

Two steps are identical if their entry keys are equal: the waiter's as it is now, and the one that was
written on the other Pod when that was released (`memopod.io/entry-key`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from memopod.steps import Step, names
from memopod.steps.deadline import seconds_left
from memopod.steps.times import from_text

OFF, ACROSS_WORKFLOWS, EVERYWHERE = "off", "across-workflows", "everywhere"
SCOPES = (OFF, ACROSS_WORKFLOWS, EVERYWHERE)
"""For whom a step may wait: nobody, a step of another workflow, or one of its own workflow too."""

WORTH_WAITING = frozenset(("miss", "stale", "outputs-gone"))
"""Reasons to run that the end of an identical run takes away."""

RENEWAL = timedelta(seconds=60)
"""By how much a waiter's `hold-until` is renewed at a time."""
_RENEW_BEFORE = timedelta(seconds=30)


class Phase(Enum):
    """What becomes of a Pod that was released."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    RECORDED = "recorded"
    FRUITLESS = "fruitless"
    """Succeeded, and is known to make no entry."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitRules:
    """What a cluster sets. Times are seconds.

    `scope` is for whom steps wait that do not say so themselves; `longest` how old a waiter's Pod may
    become; `most` how many may wait in a namespace, as held Pods count in quota and parallelism.
    `pending_grace`: a run that does not start for so long is not waited for. `entry_grace`: from a run's
    success to its entry. `pause`: a key whose run failed is not waited for again for so long.
    `defer`: how long a younger step leaves the first turn to an older one that is not decided yet.
    """

    scope: str = OFF
    longest: float = 3600.0
    most: int = 100
    pending_grace: float = 30.0
    entry_grace: float = 10.0
    pause: float = 600.0
    defer: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A Pod that was released, as it was last seen; `since` is when its phase was first seen."""

    uid: str
    name: str
    namespace: str
    workflow_uid: str
    key: str
    created: datetime
    phase: Phase
    since: datetime


class Stay(Enum):
    """The waiter goes on waiting; RENEW: and its time is nearly over."""

    STAY = "stay"
    RENEW = "renew"


@dataclass(frozen=True, slots=True)
class Leave:
    """The waiter is decided for now, and waits no more; `reason` why it runs if it cannot be reused."""

    reason: str


def scope_of(annotations: Mapping[str, str], rules: WaitRules) -> str:
    """For whom this step may wait: what its annotation says, else the cluster's rule.

    What the annotation says is OFF unless it is one of SCOPES.
    """
    asked = annotations.get(names.COALESCE)
    if asked is None:
        return rules.scope
    return asked if asked in SCOPES else OFF


def may_wait(step: Step, rules: WaitRules, now: datetime) -> bool:
    """Whether a step may wait at all: it is asked for, and nothing would end it meanwhile."""
    if scope_of(step.annotations, rules) == OFF or step.template is None:
        return False
    limits = (step.template.get("activeDeadlineSeconds"), step.pod["spec"].get("activeDeadlineSeconds"))
    if seconds_left(step, now) is not None or any(limit is not None for limit in limits):
        return False
    return _age(step.pod, now) < rules.longest


def is_awaitable(execution: Execution, rules: WaitRules, now: datetime) -> bool:
    """Whether a run may still be waited for: it runs, or starts soon, or its entry is about to stand."""
    return _gave_up(execution, rules, now) is None


def judge(pod: Mapping[str, Any], awaited: Execution | None, rules: WaitRules, now: datetime) -> Stay | Leave:
    """What becomes of a waiter, given the run that it waits for (None if that is gone)."""
    annotations = pod["metadata"].get("annotations") or {}
    if scope_of(annotations, rules) == OFF:
        return Leave("waiting-off")
    if _age(pod, now) >= rules.longest:
        return Leave("waited-too-long")
    if awaited is None:
        return Leave("awaited-gone")
    if awaited.phase is Phase.RECORDED:
        return Leave("miss")
    reason = _gave_up(awaited, rules, now)
    if reason is not None:
        return Leave(reason)
    until = from_text(annotations.get(names.HOLD_UNTIL))
    return Stay.RENEW if until is None or until - now < _RENEW_BEFORE else Stay.STAY


def _gave_up(awaited: Execution, rules: WaitRules, now: datetime) -> str | None:
    """Why a run is not waited for (any longer); None if it is."""
    lasted = (now - awaited.since).total_seconds()
    match awaited.phase:
        case Phase.PENDING:
            return "awaited-pending" if lasted >= rules.pending_grace else None
        case Phase.SUCCEEDED:
            return "awaited-no-entry" if lasted >= rules.entry_grace else None
        case Phase.FRUITLESS:
            return "awaited-no-entry"
        case Phase.RECORDED:
            return "miss"
        case Phase.FAILED:
            return "awaited-failed"
        case Phase.RUNNING:
            return None


def phase_of(pod: Mapping[str, Any]) -> Phase:
    """The phase of a Pod that was released. One that is being deleted while it runs will not succeed."""
    phase = (pod.get("status") or {}).get("phase")
    if phase == "Succeeded":
        return Phase.SUCCEEDED
    if phase == "Failed" or pod["metadata"].get("deletionTimestamp"):
        return Phase.FAILED
    return Phase.RUNNING if phase == "Running" else Phase.PENDING


def is_waiting(pod: Mapping[str, Any]) -> bool:
    """Whether a held Pod waits for another one."""
    return names.WAITS_FOR in (pod["metadata"].get("annotations") or {})


def _age(pod: Mapping[str, Any], now: datetime) -> float:
    created = from_text(pod["metadata"].get("creationTimestamp"))
    return (now - created).total_seconds() if created else float("inf")
