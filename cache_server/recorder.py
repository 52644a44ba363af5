"""The recorder: a step that ran and succeeded becomes an entry, if everything about it is certain."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client import Counter

from cache_server.artifacts import Artifacts, ArtifactStoreUnavailable
from cache_server.audit import compare
from cache_server.decision import Decider
from cache_server.entries import Entries, EntriesUnavailable, Entry
from cache_server.finish import marked_result
from cache_server.identity import Identifier
from cache_server.jobs import Jobs
from cache_server.recording import (
    Execution,
    NotRecordable,
    check_evidence,
    check_lifetime,
    check_place,
    check_unwritten,
    execution_of,
    is_candidate,
)  # fmt: skip
from memopod.kube import WORKFLOWS, ApiError, Client, Forbidden, NotFound, emit, fetch_outputs
from memopod.steps import NotAStep, Outputs, OutputsMismatch, Step, names, read_step
from memopod.steps.identity import Identity
from memopod.steps.key import KEY_VERSION, KeyRules, Unkeyable, base_digest
from memopod.steps.outputs import NodesOffloaded, declared, select_declared
from memopod.steps.staleness import requested

_log = structlog.get_logger()
_AUDITS = Counter("memopod_audits_total", "Hits that ran to be compared, by what came of it.", ["result"])
for _result in ("same", "different", "unknown"):
    _AUDITS.labels(_result)  # from zero: the first one is an increase too, which an alert sees
_RECORDED = Counter("memopod_recorded_total", "Steps that ran, by what became of them.", ["result"])
_FIRST_PAUSE, _LONGEST_PAUSE, _PATIENCE = 0.1, 5.0, 120.0
"""Seconds: between tries, at most, and how long outputs may be late or a database away."""


class Recorder:
    """Turns the Pods that `see` hands it into entries, while `leads()` is true.

    `on_end(pod, entry)` is called when it is done with one: whether an entry of its key stands now;
    `on_recorded(pod, entry)` when it has become one.
    """

    def __init__(
        self, client: Client, identifier: Identifier, entries: Entries, artifacts: Artifacts,
        decider: Decider, rules: KeyRules, *, leads: Callable[[], bool], concurrency: int,
        on_end: Callable[[Mapping[str, Any], bool], None] = lambda _pod, _entry: None,
        on_recorded: Callable[[Mapping[str, Any], Entry], None] = lambda _pod, _entry: None,
    ) -> None:  # fmt: skip
        self._client = client
        self._identifier = identifier
        self._entries = entries
        self._artifacts = artifacts
        self._decider = decider
        self._rules = rules
        self._leads = leads
        self._on_end = on_end
        self._on_recorded = on_recorded
        self._jobs = Jobs(concurrency)
        self._recordings = identifier.recordings
        self._seen: set[str] = set()

    def see(self, pod: Mapping[str, Any]) -> None:
        """Take note of a Pod as it is now; the first time it is a candidate, it is recorded."""
        uid = pod["metadata"]["uid"]
        if uid in self._seen or uid in self._jobs or not is_candidate(pod) or not self._leads():
            return
        self._seen.add(uid)
        self._recordings.begin(pod)
        name = f"record:{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        self._jobs.start(uid, name, lambda: self._record_and_tell(pod))

    def forget(self, pod: Mapping[str, Any]) -> None:
        """Drop what is remembered of a Pod that is gone; recording it goes on if it has begun."""
        self._seen.discard(pod["metadata"]["uid"])

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (bounds a set of tasks)
        """Let recordings under way end; those that take longer are taken up by the next leader."""
        await self._jobs.drain(timeout)

    async def _record_and_tell(self, pod: Mapping[str, Any]) -> None:
        try:
            await self._record_patiently(pod)
        finally:
            self._recordings.end(pod)

    async def _record_patiently(self, pod: Mapping[str, Any]) -> None:
        """Try until it is recorded, or certain that it cannot be, or the patience is at its end."""
        pause = _FIRST_PAUSE
        name = pod["metadata"]["name"]
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            try:
                result = await self._record(pod)
            except (NotRecordable, NotAStep, Unkeyable, OutputsMismatch, NodesOffloaded) as error:
                result = "refused"
                _log.info("not recorded", pod=name, reason=str(error))
            except (ApiError, EntriesUnavailable, ArtifactStoreUnavailable) as error:
                result = "unavailable"
                _log.info("recording again", pod=name, cause=type(error).__name__)
            if result not in ("unavailable", "incomplete"):
                break
            if asyncio.get_running_loop().time() > deadline:
                _log.warning("not recorded", pod=name, reason=result)
                break
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        if result in ("unavailable", "incomplete", "not-leading"):
            # Not a last word: it is taken up again while the Pod is there.
            self._seen.discard(pod["metadata"]["uid"])
        _RECORDED.labels(result).inc()
        if result != "not-leading":
            self._on_end(pod, result in ("recorded", "known", "superseded", "audited"))

    async def _record(self, pod: Mapping[str, Any]) -> str:
        step = read_step(pod)
        execution = execution_of(step)
        if not self._decider.is_sealed(step):
            raise NotRecordable("its seal is missing or not valid")
        if await self._entries.recorded(step.pod_uid):
            return "known"
        identity = await self._identifier.identify(step)
        base = base_digest(step, self._rules)
        check_evidence(step, base=base, evidence=identity.evidence, fixed=identity.fixed)
        if await self._marked(step):
            raise NotRecordable("a WorkflowTaskResult of memopod's stands in the place of its own")
        outputs = await fetch_outputs(self._client, identity.step)
        if outputs is None:
            return "incomplete"
        outputs = await self._described(select_declared(identity.step, outputs), identity.step, execution)
        workflow = await self._workflow(identity.step)
        check_lifetime(identity.step, workflow)
        check_place(outputs, workflow)
        if not self._leads():
            return "not-leading"
        if await self._audit(identity, outputs):
            return "audited"
        entry = _entry(identity, execution, outputs)
        for artifact in outputs.artifacts:
            if not entry.names_producer_of(artifact.location):
                raise NotRecordable("an output artifact is at a place that other runs may write to")
        stored = await self._entries.put(entry)
        if stored:
            self._on_recorded(pod, entry)
            _log.info("recorded", pod=step.pod_name, template=identity.step.template_name)
        return "recorded" if stored else "superseded"

    async def _audit(self, identity: Identity, outputs: Outputs) -> bool:
        """Compare an audited run with the entry that it could have reused; True if that entry stays.

        The run makes no entry of its own then: consumers of the old one keep their keys. Raises
        NotRecordable for a difference: neither of the two is more right.
        """
        step = identity.step
        audited = step.annotations.get(names.AUDITS)
        entry = await self._entries.get(audited) if audited else None
        if entry is None or (entry.namespace, entry.key) != (step.namespace, identity.key.digest):
            return False
        unpacked = {
            str(artifact.get("name"))
            for artifact in declared(step.template or {}, "artifacts")
            if "none" in (artifact.get("archive") or {})
        }
        key = self._decider.audit_key(step.namespace)
        comparison = compare(entry.outputs, outputs, unpacked=unpacked, key=key)
        _AUDITS.labels(comparison.result).inc()
        if comparison.result != "different":
            return True
        await self._entries.retire(entry.id, "audit-difference")
        told = "; ".join(comparison.differing)
        _log.warning("an audit found a difference", pod=step.pod_name, entry=entry.id, differing=told)
        await emit(
            self._client, step.pod, reason="AuditDifference", component="memopod", type="Warning",
            message=f"ran again with the same key as {entry.pod_name} and put out something else: {told}",
        )  # fmt: skip
        raise NotRecordable("an audit found other outputs than those of the entry")

    async def _marked(self, step: Step) -> bool:
        try:
            return await marked_result(self._client, step) is not None
        except Forbidden as error:
            if error.status == 401:
                raise
            # Who may not even read results has written none (Kubeflow's own account).
            return False

    async def _described(self, outputs: Outputs, step: Step, execution: Execution) -> Outputs:
        """The outputs with what the object store says of each artifact now."""
        described = []
        artifacts = await self._artifacts.within(step)
        for artifact in outputs.artifacts:
            if not artifacts.knows(artifact.location):
                described.append(artifact)
                continue
            state = await artifacts.describe(artifact.location)
            if state is None:
                raise NotRecordable("an output artifact is not where the step reported it")
            check_unwritten(execution, state.modified)
            described.append(replace(artifact, size=state.size, etag=state.etag, digest=state.content))
        return replace(outputs, artifacts=tuple(described))

    async def _workflow(self, step: Step) -> Mapping[str, Any] | None:
        if not declared(step.template or {}, "artifacts"):
            return None
        try:
            workflow = await self._client.get(WORKFLOWS, step.workflow, namespace=step.namespace)
        except NotFound:
            return None
        return workflow if workflow["metadata"]["uid"] == step.workflow_uid else None


def _entry(identity: Identity, execution: Execution, outputs: Outputs) -> Entry:
    step = identity.step
    limit = requested(step.annotations)
    return Entry(
        id=uuid.uuid4().hex,
        namespace=step.namespace,
        key=identity.key.digest,
        key_version=KEY_VERSION,
        components=identity.key.components,
        template_name=step.template_name,
        workflow=step.workflow,
        workflow_uid=step.workflow_uid,
        node_id=step.node_id,
        pod_name=step.pod_name,
        pod_uid=step.pod_uid,
        image_id=execution.image_id,
        outputs=outputs,
        execution_id=None,
        started_at=execution.started_at,
        finished_at=execution.finished_at,
        recorded_at=datetime.now(UTC),
        last_used_at=None,
        uses=0,
        max_staleness_seconds=None if limit is None else int(limit),
    )
