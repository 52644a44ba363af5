"""Which step runs where, and who waits for it, as one replica knows from the Pods that it sees.

No I/O, and no clock of its own. What the leader has just decided is remembered until the informer shows
it; the rest is in the cluster, so that the next leader knows it too. Every replica keeps it up to date.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from cache_server.waiting import (
    ACROSS_WORKFLOWS,
    Execution,
    Leave,
    Phase,
    Stay,
    WaitRules,
    is_awaitable,
    is_waiting,
    judge,
    may_wait,
    phase_of,
    scope_of,
)  # fmt: skip
from memopod.steps import Step, names
from memopod.steps.argo import owner_workflow
from memopod.steps.times import from_text

Pod = Mapping[str, Any]
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Turn(Enum):
    """GO: nobody runs the same step. LATER: an older Pod that may be the same step is decided first."""

    GO = "go"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class _Held:
    base: tuple[str, str]
    """Namespace and base key: what identical steps have in common before anything is asked for."""
    order: tuple[datetime, str]
    workflow_uid: str


class Executions:
    """Knows the runs by their entry key, and the waiters by the Pod that they wait for."""

    def __init__(self, rules: WaitRules) -> None:
        self._rules = rules
        self._runs: dict[tuple[str, str], Execution] = {}
        self._identical: defaultdict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        self._decided: dict[str, str] = {}
        self._undecided: defaultdict[tuple[str, str], dict[str, _Held]] = defaultdict(dict)
        self._deferred: defaultdict[tuple[str, str], dict[str, tuple[datetime, Pod]]] = defaultdict(dict)
        self._waiters: defaultdict[tuple[str, str], dict[str, Pod]] = defaultdict(dict)
        self._waits_for: dict[str, tuple[str, str]] = {}
        self._in_namespace: Counter[str] = Counter()
        self._barred: dict[tuple[str, str], datetime] = {}

    def see_held(self, pod: Pod) -> None:
        """A Pod is held: it is decided for soon, or waits."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        decided = self._decided.get(uid)
        if decided is not None and decided != metadata["resourceVersion"]:
            # Somebody changed it before its gate was lifted: it is decided for again.
            self.not_released(uid)
        if is_waiting(pod):
            self._join(pod, str(metadata["annotations"][names.WAITS_FOR]))
        elif uid not in self._decided and uid not in self._waits_for:
            held = _held(pod)
            self._undecided[held.base][uid] = held

    def see_released(self, pod: Pod, now: datetime) -> list[Pod]:
        """A Pod runs, or has ended. Returns those who wait for it, if that is news."""
        self._drop(pod)
        place = _place(pod)
        key = (pod["metadata"].get("annotations") or {}).get(names.ENTRY_KEY)
        if key is None:
            return []
        known = self._runs.get(place)
        self._decided.pop(pod["metadata"]["uid"], None)
        seen = _execution(pod, key, phase_of(pod), now)
        if known is not None and known.uid == seen.uid:
            if known.phase is seen.phase or known.phase in (Phase.RECORDED, Phase.FRUITLESS):
                return []
            if seen.phase is Phase.PENDING and known.phase is Phase.RUNNING:
                return []
        self._put(seen)
        if seen.phase is Phase.FAILED:
            self._bar(seen, now)
        return self.waiters(place)

    def forget(self, pod: Pod, now: datetime) -> list[Pod]:
        """A Pod is gone. Returns those who wait for it."""
        uid, place = pod["metadata"]["uid"], _place(pod)
        self._drop(pod)
        self._decided.pop(uid, None)
        run = self._runs.get(place)
        if run is None or run.uid != uid:
            return []
        if run.phase is Phase.SUCCEEDED:
            # Deleted because it has ended; its entry may stand any moment. `judge` knows how long.
            return []
        self._remove(run)
        if run.phase in (Phase.PENDING, Phase.RUNNING):
            self._bar(run, now)
        return self.waiters(place)

    def recorded(self, pod: Pod, *, entry: bool, now: datetime) -> list[Pod]:
        """A run became an entry, or never will. Returns those who wait for it."""
        place = _place(pod)
        run = self._runs.get(place)
        if run is None or run.uid != pod["metadata"]["uid"]:
            return []
        self._put(replace(run, phase=Phase.RECORDED if entry else Phase.FRUITLESS, since=now))
        if not entry:
            self._bar(run, now)
        return self.waiters(place)

    def choose(self, step: Step, key: str | None, now: datetime) -> Execution | Turn:
        """Which run a held step without a usable entry waits for; else whether it may run now."""
        if key is None or not may_wait(step, self._rules, now):
            return Turn.GO
        if self._barred.get((step.namespace, key), _LONG_AGO) > now:
            return Turn.GO
        across = scope_of(step.annotations, self._rules) == ACROSS_WORKFLOWS
        candidates = [
            run
            for run in (self._runs[place] for place in self._identical.get((step.namespace, key), ()))
            if run.uid != step.pod_uid
            and not (across and run.workflow_uid == step.workflow_uid)
            and is_awaitable(run, self._rules, now)
        ]
        if candidates:
            full = self._in_namespace[step.namespace] >= self._rules.most
            return Turn.GO if full else min(candidates, key=lambda run: (run.created, run.uid))
        return self._turn(step, now, across=across)

    def _turn(self, step: Step, now: datetime, *, across: bool) -> Turn:
        me = _held(step.pod)
        first, _ = self._deferred[me.base].setdefault(step.pod_uid, (now, step.pod))
        if (now - first).total_seconds() >= self._rules.defer:
            return Turn.GO
        older = (
            held.order < me.order and not (across and held.workflow_uid == me.workflow_uid)
            for held in self._undecided.get(me.base, {}).values()
        )
        return Turn.LATER if any(older) else Turn.GO

    def judge(self, pod: Pod, now: datetime) -> Stay | Leave:
        """What becomes of a waiter now."""
        place = pod["metadata"]["namespace"], str(pod["metadata"]["annotations"][names.WAITS_FOR])
        run = self._runs.get(place)
        verdict = judge(pod, run, self._rules, now)
        if isinstance(verdict, Leave) and verdict.reason == "awaited-no-entry" and run is not None:
            self._bar(run, now)
        return verdict

    def joined(self, pod: Pod, run: Execution) -> list[Pod]:
        """A Pod is about to wait for a run: it counts before the informer shows it.

        Returns who may go on now, as `released` and `reused` do: those that left it the first turn, and
        those that would wait for it in vain.
        """
        others = self._withdraw(pod)
        self._join(pod, run.name)
        return others

    def not_joined(self, pod: Pod) -> None:
        """A Pod does not wait after all: it is decided for again."""
        self._drop(pod)

    def released(self, pod: Pod, key: str | None, now: datetime) -> list[Pod]:
        """A Pod is about to be released: it runs from now on, until the informer shows otherwise."""
        self._drop(pod)
        if key is not None:
            self._put(_execution(pod, key, Phase.PENDING, now))
            self._decided[pod["metadata"]["uid"]] = pod["metadata"]["resourceVersion"]
        return self._younger(pod)

    def not_released(self, uid: str) -> None:
        """A Pod was not released after all; it will be soon, or withdrawn by another decision."""
        self._decided.pop(uid, None)

    def reused(self, pod: Pod) -> list[Pod]:
        """A Pod is about to be finished: nobody needs to leave it the first turn."""
        others = self._withdraw(pod)
        self._drop(pod)
        return others

    def _withdraw(self, pod: Pod) -> list[Pod]:
        """Take back that a Pod runs, if that was said of it."""
        run = self._runs.get(_place(pod))
        if run is None or run.uid != pod["metadata"]["uid"]:
            return self._younger(pod)
        self._decided.pop(run.uid, None)
        self._remove(run)
        return [*self.waiters(_place(pod)), *self._younger(pod)]

    def _younger(self, pod: Pod) -> list[Pod]:
        return [younger for _, younger in self._deferred.get(_held(pod).base, {}).values()]

    def waiters(self, place: tuple[str, str]) -> list[Pod]:
        """Those who wait for the Pod of that namespace and name, oldest first."""
        return sorted(self._waiters.get(place, {}).values(), key=lambda pod: _held(pod).order)

    def waiting(self) -> int:
        """How many Pods wait, in all namespaces."""
        return len(self._waits_for)

    def prune(self, now: datetime, present: set[str]) -> None:
        """Forget runs of Pods that are not `present` (UIDs) once nobody can wait for them any more."""
        kept = timedelta(seconds=self._rules.entry_grace)
        for run in list(self._runs.values()):
            if run.uid not in present and run.uid not in self._decided and now - run.since > kept:
                self._remove(run)
        self._barred = {key: until for key, until in self._barred.items() if until > now}

    def _put(self, run: Execution) -> None:
        place = run.namespace, run.name
        before = self._runs.get(place)
        if before is not None:
            self._remove(before)
        self._runs[place] = run
        self._identical[run.namespace, run.key].add(place)

    def _remove(self, run: Execution) -> None:
        key, place = (run.namespace, run.key), (run.namespace, run.name)
        del self._runs[place]
        self._identical[key].discard(place)
        if not self._identical[key]:
            del self._identical[key]

    def _join(self, pod: Pod, name: str) -> None:
        self._drop(pod)
        uid, place = pod["metadata"]["uid"], (pod["metadata"]["namespace"], name)
        self._waits_for[uid] = place
        self._waiters[place][uid] = pod
        self._in_namespace[place[0]] += 1

    def _drop(self, pod: Pod) -> None:
        """Forget that a Pod waits, or is to be decided for."""
        uid, base = pod["metadata"]["uid"], _held(pod).base
        for group in (self._deferred, self._undecided):
            members = group.get(base, {})
            members.pop(uid, None)
            if not members:
                group.pop(base, None)
        place = self._waits_for.pop(uid, None)
        if place is not None:
            self._in_namespace[place[0]] -= 1
            del self._waiters[place][uid]
            if not self._waiters[place]:
                del self._waiters[place]

    def _bar(self, run: Execution, now: datetime) -> None:
        self._barred[run.namespace, run.key] = now + timedelta(seconds=self._rules.pause)


def _place(pod: Pod) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _held(pod: Pod) -> _Held:
    metadata = pod["metadata"]
    created = from_text(metadata.get("creationTimestamp")) or _LONG_AGO
    key = (metadata.get("annotations") or {}).get(names.KEY, "")
    return _Held((metadata["namespace"], key), (created, metadata["uid"]), _workflow_uid(pod))


def _execution(pod: Pod, key: str, phase: Phase, now: datetime) -> Execution:
    return Execution(
        uid=pod["metadata"]["uid"],
        name=pod["metadata"]["name"],
        namespace=pod["metadata"]["namespace"],
        workflow_uid=_workflow_uid(pod),
        key=key,
        created=_held(pod).order[0],
        phase=phase,
        since=now,
    )


def _workflow_uid(pod: Pod) -> str:
    owner = owner_workflow(pod)
    return owner[1] if owner else ""
