"""The controller: one leader decides for every held Pod, and carries the decision out.

Its state is the cluster itself, so a restart loses nothing: held Pods are listed again, and a Pod
whose WorkflowTaskResult is already ours is finished before anything else is asked.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client import Histogram

from cache_server.decision import Decider, Reuse, Run
from cache_server.entries import Entries
from cache_server.executions import Executions, Turn
from cache_server.finish import is_held, own_result
from cache_server.jobs import Jobs
from cache_server.outcomes import CountDecision, Outcomes
from cache_server.progress import Progress
from cache_server.telling import Teller, drain_in_turn
from cache_server.waiters import WAITING, WAITS, begin, renew
from cache_server.waiting import WORTH_WAITING, Execution, Leave, Stay, is_waiting
from cache_server.writing import Abandoned, NotWritten, Overtaken, ResultRefused
from memopod.kube import ApiError, Client
from memopod.steps import NotAStep, names, read_step
from memopod.steps.finish import fits
from memopod.steps.outputs import is_of, is_ours
from memopod.steps.times import from_text

_log = structlog.get_logger()
_SECONDS = Histogram("memopod_decision_seconds", "From a Pod seen to its decision carried out.")
Pod = Mapping[str, Any]


class Controller:
    """Decides for the held Pods that `see` hands it, while `leads()` is true."""

    def __init__(
        self, client: Client, decider: Decider, entries: Entries, executions: Executions,
        *, leads: Callable[[], bool], settle_time: float, late_margin: float, concurrency: int,
        count: CountDecision = lambda **_: None,
    ) -> None:  # fmt: skip
        self._client = client
        self._decider = decider
        self._executions = executions
        self._leads = leads
        self._settle_time = settle_time
        self._late_margin = late_margin
        self._jobs = Jobs(concurrency, on_end=self._see_again)
        self._teller = Teller(client)
        self._outcomes = Outcomes(
            client, entries, self._teller, leads=leads, concurrency=concurrency, count=count
        )
        self._progress = Progress()
        self._latest: dict[str, Pod] = {}
        self._done: defaultdict[str, set[str]] = defaultdict(set)
        """The versions of a Pod that were decided for."""
        self._over: set[str] = set()
        """UIDs of Pods that were let go: none of them is ever held again, whatever a late watch says."""
        self._leaving: set[str] = set()
        """UIDs of Pods whose gate may be lifted any moment: lifting it was asked for, and nobody answered."""

    def see(self, pod: Pod) -> None:
        """Take note of a Pod as it is now. Decides once for each version of it, one task a Pod."""
        if is_held(pod) and pod["metadata"]["uid"] in self._over:
            # An older version of it: the watch is late.
            return
        if is_held(pod) and not pod["metadata"].get("deletionTimestamp"):
            self._executions.see_held(pod)
            self._consider(pod)
        elif (pod["metadata"].get("labels") or {}).get(names.STEP_LABEL) == names.RELEASED:
            self._forget_decision(pod)
            self._consider_all(self._executions.see_released(pod, datetime.now(UTC)))
        else:
            self.forget(pod)

    def forget(self, pod: Pod) -> None:
        """Drop what is remembered of a Pod that is gone, or none of a step that was held."""
        self._forget_decision(pod)
        self._consider_all(self._executions.forget(pod, datetime.now(UTC)))

    def recorded(self, pod: Pod, *, entry: bool) -> None:
        """A run became an entry, or never will: its waiters need not wait any longer."""
        self._consider_all(self._executions.recorded(pod, entry=entry, now=datetime.now(UTC)))

    def stalled(self, pods: Iterable[Pod]) -> float:
        """For how many seconds Pods have waited for this leader's decisions, and none was carried out."""
        return self._progress.missing_for(pods, leads=self._leads())

    def tidy(self, present: set[str]) -> None:
        """Forget what no Pod that is `present` (UIDs) needs. To be called now and then."""
        self._executions.prune(datetime.now(UTC), present)
        self._over &= present
        self._leaving &= present
        WAITING.set(self._executions.waiting() if self._leads() else 0)

    def _forget_decision(self, pod: Pod) -> None:
        self._latest.pop(pod["metadata"]["uid"], None)
        self._done.pop(pod["metadata"]["uid"], None)

    def _consider(self, pod: Pod) -> None:
        """Start what is to be done about a held Pod, unless that was done for this version of it."""
        uid = pod["metadata"]["uid"]
        if not self._leads() or uid in self._over or _version(pod) in self._done.get(uid, ()):
            return
        if is_waiting(pod) and self._executions.judge(pod, datetime.now(UTC)) is Stay.STAY:
            return
        self._latest[uid] = pod
        if uid not in self._jobs:
            name = f"decide:{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            self._jobs.start(uid, name, lambda: self._handle(uid))

    def _consider_all(self, pods: Iterable[Pod]) -> None:
        for pod in pods:
            self._consider(pod)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (bounds a set of tasks)
        """Let decisions under way end; those that take longer are cancelled, and others go on."""
        await drain_in_turn(timeout, self._jobs, self._teller)

    def ended_cleanly(self) -> bool:
        """Whether it was drained and no write of its can still be under way: another may lead at once."""
        return self._jobs.ended_cleanly() and not self._leaving

    def _see_again(self, uid: str) -> None:
        if uid in self._latest:
            self._consider(self._latest.pop(uid))

    async def _handle(self, uid: str) -> None:
        pod = self._latest.pop(uid, None)
        if pod is None or not self._leads():
            return
        verdict = self._executions.judge(pod, datetime.now(UTC)) if is_waiting(pod) else None
        if verdict is Stay.STAY:
            return
        self._done[uid].add(_version(pod))
        try:
            if isinstance(verdict, Stay):
                await self._renew(pod)
            else:
                with _SECONDS.time():
                    await self._decide(pod, verdict)
            self._progress.made()
        except Overtaken as error:
            if error.now is not None:
                self._latest[uid] = error.now
            _log.info("decides again for a Pod that has changed", pod=pod["metadata"]["name"])
        except (ApiError, Abandoned) as error:
            # Nothing was written, or everybody can see what was: the next look at this Pod, the
            # sweeper or the next leader takes it up.
            self._done.pop(uid, None)
            _log.warning("cannot carry out a decision", pod=pod["metadata"]["name"], cause=repr(error))

    async def _decide(self, pod: Pod, leaving: Leave | None) -> None:
        """Decide for a Pod; `leaving` says why it does not wait any more, if it did."""
        try:
            step = read_step(pod)
        except NotAStep as error:
            await self._run(pod, Run(reason=error.reason))
            return
        # Both at once: each asks another server. What was decided counts only if there is no result.
        deciding = asyncio.create_task(self._decider.decide(pod), name=f"choose:{step.pod_name}")
        try:
            result = await own_result(self._client, step)
            if result is None:
                decision = await deciding
        finally:
            deciding.cancel()
            await asyncio.wait([deciding])
        if result is not None:
            await self._forward(pod, result)
            return
        if isinstance(decision, Reuse):
            if not self._in_time(pod):
                decision = Run(reason="too-late")
            elif not fits(pod, decision.outputs):
                decision = Run(reason="outputs-too-large")
        elif decision.reason in WORTH_WAITING:
            if leaving is not None:
                decision = replace(decision, reason=leaving.reason)
            elif await self._waits(pod, decision):
                return
        if leaving is not None:
            WAITS.labels("reused" if isinstance(decision, Reuse) else decision.reason).inc()
        if isinstance(decision, Reuse):
            await self._reuse(pod, decision)
        else:
            await self._run(pod, decision)

    async def _waits(self, pod: Pod, decision: Run) -> bool:
        """Let a Pod without a usable entry wait for the identical step that runs; False if it is to run."""
        if decision.step is None or not self._in_time(pod):
            return False
        choice = self._executions.choose(decision.step, decision.key, datetime.now(UTC))
        if choice is Turn.GO or not self._leads():
            return False
        if not isinstance(choice, Execution):
            # Seen again when the older one is decided, and with the next look.
            self._done.pop(pod["metadata"]["uid"], None)
            return True
        others = self._executions.joined(pod, choice)
        try:
            waits = await begin(self._client, pod, choice)
        except ApiError:
            self._executions.not_joined(pod)
            raise
        if waits:
            _log.info("waits", pod=pod["metadata"]["name"], for_=choice.name)
            self._teller.tell(pod, "Waiting", f"waits for {choice.name}, which runs the identical step")
        else:
            self._executions.not_joined(pod)
        self._consider_all(others)
        return True

    async def _renew(self, pod: Pod) -> None:
        if self._leads() and self._in_time(pod):
            await renew(self._client, pod)

    def _in_time(self, pod: Pod) -> bool:
        """Whether a reuse or a wait may still begin: not late, and nobody is about to release the Pod.

        However old a claim says that it is: the clock of who made it may be wrong.
        """
        uid = pod["metadata"]["uid"]
        annotations = self._latest.get(uid, pod)["metadata"].get("annotations") or {}
        if names.CLAIMED_BY in annotations or uid in self._leaving:
            return False
        until = from_text(annotations.get(names.HOLD_UNTIL))
        return until is not None and (until - datetime.now(UTC)).total_seconds() > self._late_margin

    async def _run(self, pod: Pod, decision: Run) -> None:
        if not self._leads():
            return
        others = self._executions.released(pod, decision.key, datetime.now(UTC))
        try:
            await self._outcomes.run(pod, decision)
        except NotWritten:
            self._executions.not_released(pod["metadata"]["uid"])
            raise
        except ApiError:
            self._leaving.add(pod["metadata"]["uid"])
            raise
        finally:
            self._consider_all(others)
        self._over.add(pod["metadata"]["uid"])

    async def _reuse(self, pod: Pod, decision: Reuse) -> None:
        if not self._leads():
            return
        try:
            result = await self._outcomes.write(pod, decision, in_time=self._in_time)
        except ResultRefused as error:
            _log.warning("the WorkflowTaskResult was refused", cause=str(error))
            await self._run(pod, Run(reason="result-refused"))
            return
        if not (is_ours(result) and is_of(result, decision.step.workflow_uid)):
            await self._run(pod, Run(reason="result-exists"))
            return
        # The settling time of many hits at once would else add up.
        self._jobs.leave_slot()
        await asyncio.sleep(self._settle_time)
        await self._forward(pod, result)

    async def _forward(self, pod: Pod, result: Mapping[str, Any]) -> None:
        # One that cannot be finished is tried for long, and must keep no other from being decided for.
        self._jobs.leave_slot()
        self._consider_all(self._executions.reused(pod))
        await self._outcomes.finish(pod, result)
        self._over.add(pod["metadata"]["uid"])


def _version(pod: Pod) -> str:
    version: str = pod["metadata"]["resourceVersion"]
    return version
