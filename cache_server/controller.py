"""The controller: one leader decides for every held Pod, and carries the decision out.

Its state is the cluster itself, so a restart loses nothing: held Pods are listed again, and a Pod
whose WorkflowTaskResult is already ours is finished before anything else is asked.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from prometheus_client import Counter, Histogram

from cache_server.decision import Decider, Reuse, Run
from cache_server.entries import Entries, EntriesUnavailable
from cache_server.executions import Executions, Turn
from cache_server.finish import go_forward, is_held, own_result, release
from cache_server.jobs import Jobs
from cache_server.progress import Progress
from cache_server.sweeper import is_claimed
from cache_server.waiters import WAITING, WAITS, begin, renew
from cache_server.waiting import WORTH_WAITING, Execution, Leave, Stay, is_waiting
from memopod.kube import (
    TASK_RESULTS,
    ApiError,
    Client,
    NotFound,
    emit,
)  # fmt: skip
from memopod.steps import NotAStep, names, read_step
from memopod.steps.finish import fits, task_result
from memopod.steps.outputs import is_of, is_ours
from memopod.steps.reasons import REFUSALS, SENTENCES
from memopod.steps.times import from_text

_log = structlog.get_logger()
_DECISIONS = Counter("memopod_decisions_total", "Decisions for held Pods.", ["decision", "reason"])
_SECONDS = Histogram("memopod_decision_seconds", "From a Pod seen to its decision carried out.")
_CREATE_SECONDS = 1.0
"""Deadline of the write that decides: a leader gives up 1 s before another may take over, so that what
it sent has been answered or cut off by then."""
_UNKNOWN_PAUSE = 0.5
_EVENTS_AT_ONCE = 4
"""Few: nothing waits for an Event, and a Pod that waits for its status should not wait behind them."""
_MAYBE_WRITTEN = (409, 429)
"""Client errors after which the object may be there, or may be created in a moment."""

Pod = Mapping[str, Any]


class CountDecision(Protocol):
    """Takes note of a decision that was carried out, at once and without failing."""

    def __call__(self, *, namespace: str, template: str, reason: str, entry_id: str) -> None:
        """`entry_id` is that of the reused entry, empty for a step that runs."""


class ResultRefused(Exception):
    """The API server does not accept the WorkflowTaskResult: it is not there, and will not be."""


class Abandoned(Exception):
    """Nothing was written, and it is no longer ours to write: a new leader or a sweeper decides."""


class Controller:
    """Decides for the held Pods that `see` hands it, while `leads()` is true."""

    def __init__(
        self, client: Client, decider: Decider, entries: Entries, executions: Executions,
        *, leads: Callable[[], bool], settle_time: float, late_margin: float, concurrency: int,
        count: CountDecision = lambda **_: None,
    ) -> None:  # fmt: skip
        self._client = client
        self._decider = decider
        self._entries = entries
        self._executions = executions
        self._leads = leads
        self._count = count
        self._settle_time = settle_time
        self._late_margin = late_margin
        self._jobs = Jobs(concurrency, on_end=self._see_again)
        self._finishing = asyncio.Semaphore(concurrency)
        """Bounds writes, so that those of the Lease find a connection."""
        self._telling = asyncio.Semaphore(_EVENTS_AT_ONCE)
        self._progress = Progress()
        self._latest: dict[str, Pod] = {}
        self._done: dict[str, str] = {}

    def see(self, pod: Pod) -> None:
        """Take note of a Pod as it is now. Decides once for each version of it, one task a Pod."""
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
        WAITING.set(self._executions.waiting() if self._leads() else 0)

    def _forget_decision(self, pod: Pod) -> None:
        self._latest.pop(pod["metadata"]["uid"], None)
        self._done.pop(pod["metadata"]["uid"], None)

    def _consider(self, pod: Pod) -> None:
        """Start what is to be done about a held Pod, unless that was done for this version of it."""
        uid = pod["metadata"]["uid"]
        if not self._leads() or self._done.get(uid) == pod["metadata"]["resourceVersion"]:
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
        await self._jobs.drain(timeout)

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
        self._done[uid] = pod["metadata"]["resourceVersion"]
        try:
            if isinstance(verdict, Stay):
                await self._renew(pod)
            else:
                with _SECONDS.time():
                    await self._decide(pod, verdict)
            self._progress.made()
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
            if result is not None:
                await self._forward(pod, result)
                return
            decision = await deciding
        finally:
            deciding.cancel()
        if isinstance(decision, Reuse):
            if self._has_changed(pod):
                # Decided for a step that it is no more; its newer version is seen next.
                return
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
        else:
            self._executions.not_joined(pod)
        self._consider_all(others)
        return True

    async def _renew(self, pod: Pod) -> None:
        if self._leads() and self._in_time(pod):
            await renew(self._client, pod)

    def _has_changed(self, pod: Pod) -> bool:
        """Whether a newer version of the Pod, with another spec or other marks, has been seen meanwhile."""
        newer = self._latest.get(pod["metadata"]["uid"], pod)
        return any(newer["metadata"].get(f) != pod["metadata"].get(f) for f in ("labels", "annotations")) or (
            newer["spec"] != pod["spec"]
        )

    def _in_time(self, pod: Pod) -> bool:
        """Whether a reuse or a wait may still begin: not late, and nobody is about to release the Pod."""
        now = datetime.now(UTC)
        pod = self._latest.get(pod["metadata"]["uid"], pod)
        if is_claimed(pod, now):
            return False
        until = from_text((pod["metadata"].get("annotations") or {}).get(names.HOLD_UNTIL))
        return until is not None and (until - now).total_seconds() > self._late_margin

    async def _run(self, pod: Pod, decision: Run) -> None:
        if not self._leads():
            return
        others = self._executions.released(pod, decision.key, datetime.now(UTC))
        released = await release(
            self._client, pod, reason=decision.reason, identity=decision.identity, audits=decision.audits
        )
        if released:
            _DECISIONS.labels(names.RUN, decision.reason).inc()
            self._counted(pod, decision.reason)
            _log.info("released", pod=pod["metadata"]["name"], reason=decision.reason)
            if decision.reason in REFUSALS:
                await emit(
                    self._client, dict(pod), reason="NotReused", component="memopod",
                    message=f"runs, though an entry has its key: {SENTENCES[decision.reason]}",
                )  # fmt: skip
        else:
            self._executions.not_released(pod["metadata"]["uid"])
        self._consider_all(others)

    async def _reuse(self, pod: Pod, decision: Reuse) -> None:
        if not self._leads():
            return
        entry = decision.entry
        wanted = task_result(
            decision.step, decision.outputs,
            entry=entry.id, source_pod=entry.pod_name,
            source_execution=f"{entry.workflow_uid}/{entry.node_id}", source_logs=entry.outputs.logs,
        )  # fmt: skip
        try:
            result = await self._write_result(wanted, pod)
        except ResultRefused as error:
            _log.warning("the WorkflowTaskResult was refused", cause=repr(error.__cause__))
            await self._run(pod, Run(reason="result-refused"))
            return
        if not (is_ours(result) and is_of(result, decision.step.workflow_uid)):
            await self._run(pod, Run(reason="result-exists"))
            return
        # The settling time of many hits at once would else add up.
        self._jobs.leave_slot()
        await asyncio.sleep(self._settle_time)
        await self._forward(pod, result)

    async def _write_result(self, wanted: dict[str, Any], pod: Pod) -> Mapping[str, Any]:
        """Create the WorkflowTaskResult; the one that is there in the end is returned.

        When no answer came it may or may not have been written, and until that is known the Pod can
        neither be released nor finished: asks until somebody answers.
        """
        metadata = wanted["metadata"]
        while True:
            try:
                return await self._client.create(
                    TASK_RESULTS, wanted, namespace=metadata["namespace"], timeout=_CREATE_SECONDS
                )
            except ApiError as error:
                if 400 <= error.status < 500 and error.status not in _MAYBE_WRITTEN:
                    raise ResultRefused from error
                _log.info("is the WorkflowTaskResult there?", cause=error.reason)
            found = await self._find(metadata)
            if found is not None:
                return found
            await asyncio.sleep(_UNKNOWN_PAUSE)
            if not self._leads() or not self._in_time(pod) or self._has_changed(pod):
                raise Abandoned

    async def _find(self, metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
        while True:
            try:
                return await self._client.get(
                    TASK_RESULTS, metadata["name"], namespace=metadata["namespace"],
                    timeout=_CREATE_SECONDS,
                )  # fmt: skip
            except NotFound:
                return None
            except ApiError as error:
                _log.info("asking again for a WorkflowTaskResult", cause=error.reason)
            await asyncio.sleep(_UNKNOWN_PAUSE)

    async def _forward(self, pod: Pod, result: Mapping[str, Any]) -> None:
        self._consider_all(self._executions.reused(pod))
        async with self._finishing:
            if not await go_forward(self._client, pod, result):
                return
        entry = result["metadata"]["labels"][names.ENTRY]
        source = (result["metadata"].get("annotations") or {}).get(names.SOURCE_POD, "an earlier run")
        _DECISIONS.labels(names.REUSE, "hit").inc()
        self._counted(pod, "hit", entry)
        _log.info("reused", pod=pod["metadata"]["name"], entry=entry, source=source)
        async with self._telling:
            await emit(
                self._client, dict(pod), reason="Reused", component="memopod",
                message=f"finished with the outputs of {source}; no container ran",
            )  # fmt: skip
        try:
            await self._entries.used(entry, datetime.now(UTC))
        except EntriesUnavailable as error:
            _log.warning("a use was not counted", entry=entry, cause=str(error))

    def _counted(self, pod: Pod, reason: str, entry: str = "") -> None:
        try:
            template = read_step(pod).template_name
        except NotAStep:
            template = ""
        self._count(namespace=pod["metadata"]["namespace"], template=template, reason=reason, entry_id=entry)
