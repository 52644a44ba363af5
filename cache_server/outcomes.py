"""Carries decisions out: a gate is lifted, or a WorkflowTaskResult written and the Pod finished.

Each write is one on the Pod as it is at that moment. What a watch says may be late, so a Pod is read
once more before its WorkflowTaskResult is created: it must be what was decided for, and unclaimed.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from prometheus_client import Counter

from cache_server.decision import Reuse, Run
from cache_server.entries import Entries, EntriesUnavailable
from cache_server.finish import go_forward, is_held, release
from cache_server.telling import Teller
from cache_server.writing import CALL_SECONDS, Abandoned, NotWritten, Overtaken, write_result
from memopod.kube import PODS, ApiError, Client, NotFound
from memopod.steps import NotAStep, names, read_step
from memopod.steps.finish import task_result
from memopod.steps.reasons import REFUSALS, SENTENCES

_log = structlog.get_logger()
_DECISIONS = Counter("memopod_decisions_total", "Decisions for held Pods.", ["decision", "reason"])
# From zero: the first one is an increase, which alerts and dashboard see.
_DECISIONS.labels(names.RUN, "internal-error")
_DECISIONS.labels(names.REUSE, "hit")
_LOOK_SECONDS = 0.9
"""How old the last look at a Pod may be when its WorkflowTaskResult is created. With the deadline of the
creation less than the two seconds that a claim waits for it."""
_RELEASES = 3
"""How often a Pod that nobody changed is released, where the server says that somebody did."""

Pod = Mapping[str, Any]


class CountDecision(Protocol):
    """Takes note of a decision that was carried out, at once and without failing."""

    def __call__(self, *, namespace: str, template: str, reason: str, entry_id: str) -> None:
        """`entry_id` is that of the reused entry, empty for a step that runs."""


class Outcomes:
    """Writes what was decided, while `leads()` is true; counts it and tells of it."""

    def __init__(
        self, client: Client, entries: Entries, teller: Teller,
        *, leads: Callable[[], bool], concurrency: int, count: CountDecision,
    ) -> None:  # fmt: skip
        self._client = client
        self._entries = entries
        self._teller = teller
        self._leads = leads
        self._count = count
        self._finishing = asyncio.Semaphore(concurrency)
        """Bounds the writes of Pods that left their slot for a decision."""

    async def run(self, pod: Pod, decision: Run) -> None:
        """Lift the gate. Raises Overtaken for a Pod that has changed, Abandoned, and ApiError."""
        await self._release(pod, decision)
        _DECISIONS.labels(names.RUN, decision.reason).inc()
        self._counted(pod, decision.reason)
        _log.info("released", pod=pod["metadata"]["name"], reason=decision.reason)
        if decision.reason in REFUSALS:
            said = f"runs, though an entry has its key: {SENTENCES[decision.reason]}"
            self._teller.tell(pod, "NotReused", said)

    async def _release(self, pod: Pod, decision: Run) -> None:
        for _ in range(_RELEASES):
            if await release(
                self._client, pod, reason=decision.reason, identity=decision.identity, audits=decision.audits
            ):
                return
            # The server may say so of a Pod that nobody changed, or only its status has changed.
            pod = await self._as_now(pod, timeout=CALL_SECONDS)
            if not self._leads():
                break
        raise Abandoned("the Pod did not change, and could not be released")

    async def write(
        self, pod: Pod, decision: Reuse, *, in_time: Callable[[Pod], bool]
    ) -> Mapping[str, Any]:  # fmt: skip
        """Create the WorkflowTaskResult; the one that is there in the end is returned, be it another's.

        `in_time(pod)` says of the Pod as it is now whether a reuse may still begin. Raises NotWritten.
        """
        entry = decision.entry
        wanted = task_result(
            decision.step, decision.outputs,
            entry=entry.id, source_pod=entry.pod_name,
            source_execution=f"{entry.workflow_uid}/{entry.node_id}", source_logs=entry.outputs.logs,
        )  # fmt: skip
        return await write_result(self._client, wanted, obstacle=lambda: self._obstacle(pod, in_time))

    async def _obstacle(self, pod: Pod, in_time: Callable[[Pod], bool]) -> NotWritten | None:
        """What forbids to write the Pod's result now."""
        asked = time.monotonic()
        try:
            now = await self._as_now(pod, timeout=_LOOK_SECONDS)
        except Overtaken as error:
            return error
        except ApiError as error:
            return Abandoned(str(error))
        if not self._leads() or not in_time(now):
            return Abandoned("it is too late for a reuse, or another leads")
        # Else this process was paused since.
        return None if time.monotonic() - asked <= _LOOK_SECONDS else Abandoned("the last look is too old")

    async def finish(self, pod: Pod, result: Mapping[str, Any]) -> None:
        """Go forward from a WorkflowTaskResult of ours. Raises the last ApiError after a minute."""
        if not await go_forward(self._client, pod, result, slots=self._finishing):
            return
        entry = result["metadata"]["labels"][names.ENTRY]
        source = (result["metadata"].get("annotations") or {}).get(names.SOURCE_POD, "an earlier run")
        _DECISIONS.labels(names.REUSE, "hit").inc()
        self._counted(pod, "hit", entry)
        _log.info("reused", pod=pod["metadata"]["name"], entry=entry, source=source)
        self._teller.tell(pod, "Reused", f"finished with the outputs of {source}; no container ran")
        try:
            await self._entries.used(entry, datetime.now(UTC))
        except EntriesUnavailable as error:
            _log.warning("a use was not counted", entry=entry, cause=str(error))

    async def _as_now(self, pod: Pod, *, timeout: float) -> Pod:  # noqa: ASYNC109 (of one request)
        """The Pod as it is now, if it is what was decided for. Raises Overtaken if not, and ApiError."""
        metadata = pod["metadata"]
        try:
            now = await self._client.get(
                PODS, metadata["name"], namespace=metadata["namespace"], timeout=timeout
            )
        except NotFound as error:
            raise Overtaken(None) from error
        if now["metadata"]["uid"] != metadata["uid"] or not is_held(now):
            raise Overtaken(None)
        if _differ(now, pod):
            raise Overtaken(None if now["metadata"].get("deletionTimestamp") else now)
        return now

    def _counted(self, pod: Pod, reason: str, entry: str = "") -> None:
        try:
            template = read_step(pod).template_name
        except NotAStep:
            template = ""
        self._count(namespace=pod["metadata"]["namespace"], template=template, reason=reason, entry_id=entry)


def _differ(one: Pod, other: Pod) -> bool:
    """Whether two versions of a Pod differ in their spec or their marks, or one of them is being deleted."""
    fields = ("labels", "annotations", "deletionTimestamp")
    return one["spec"] != other["spec"] or any(
        one["metadata"].get(field) != other["metadata"].get(field) for field in fields
    )
