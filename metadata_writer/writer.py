"""Keeps the store in step with the cluster: looks at a step, records what is to be seen, comes back if
something is missing.

Nothing that fails is dropped, and nothing that fails delays another step: while the store is away all
wait for it, a step that fails by itself waits alone, for longer each time.
"""

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from memopod.kube import CONFIG_MAPS, ApiError, Client, NotFound
from memopod.kube.outputs import fetch_outputs
from memopod.mlmd import StoreError, StoreUnavailable
from memopod.steps import NotAStep, Outputs, Step, names, read_step
from memopod.steps.argo import decode_template
from memopod.steps.outputs import NodesOffloaded, declared, read_outputs
from metadata_writer import metrics, reader
from metadata_writer.recorder import Outcome, Recorder
from metadata_writer.records import State, StepRecord
from metadata_writer.sightings import Sighting, Sightings, StepKey
from metadata_writer.store_probe import StoreProbe
from metadata_writer.work_queue import WorkQueue

_FIRST_DELAY: Final = 0.25
"""Seconds before a step is looked at again for what was missing, doubled each time."""
_LONGEST_DELAY: Final = 30.0
"""At most that long: what comes late (an output, a producer's record) comes within seconds."""
_LOOKS: Final = 12
"""How often a step is looked at again for what is missing: three minutes in all. After that only an
event of its own, or a restart, brings it back."""
_PATIENT_LOOKS: Final = 7
"""How often a reused step waits for the record of the run it reuses: half a minute. It is usually there."""
_NODE_GRACE: Final = 2.0
"""Seconds that a node without a Pod is left alone: the Pod's event may be under way, and says more."""

_decode = msgspec.json.Decoder().decode


class TemplateGone(LookupError):
    """A step's template was offloaded, and neither its ConfigMap nor its node is there (yet)."""


@dataclass(slots=True)
class _Progress:
    """How often a step was looked at in vain: for `looks`, something was missing; in `failures`, an error."""

    looks: int = 0
    failures: int = 0


class Writer:
    """Any number of tasks may `work` at once; each takes another step."""

    def __init__(self, client: Client, recorder: Recorder, probe: StoreProbe, *, limit: int) -> None:
        self._client = client
        self._recorder = recorder
        self._probe = probe
        self._queue: WorkQueue[StepKey] = WorkQueue()
        self._since: dict[StepKey, float] = {}
        self._progress: dict[StepKey, _Progress] = {}
        self._failing: set[StepKey] = set()
        self._log = structlog.get_logger()
        self.sightings = Sightings(self._changed, limit=limit)

    async def work(self) -> None:
        """Record one step after another until cancelled, once all Pods are listed.

        Before that a node without a Pod would look like one whose Pod is gone.
        """
        await self.sightings.pods_listed.wait()
        while True:
            await self._probe.up.wait()
            key = await self._queue.get()
            try:
                await self._try(key)
            finally:
                self._queue.done(key)
                metrics.QUEUE.set(len(self._queue))

    async def drain(self, seconds: float) -> int:
        """Wait until all that waits is recorded, at most that long; how many steps are left."""
        try:
            await asyncio.wait_for(self._queue.join(), seconds)
        except TimeoutError:
            return len(self._queue)
        finally:
            self._queue.close()
        return 0

    def _changed(self, key: StepKey) -> None:
        self._since.setdefault(key, time.monotonic())
        self._queue.add(key)
        metrics.QUEUE.set(len(self._queue))

    async def _try(self, key: StepKey) -> None:
        try:
            await self._look(key)
        except StoreUnavailable as error:
            self._log.warning("the store is away", error=str(error))
            metrics.RETRIES.labels(reason="store-away").inc()
            self._probe.lost()
            self._queue.add(key)
        except (StoreError, ApiError, TemplateGone) as error:
            self._put_off(key, error)
        except Exception as error:  # noqa: BLE001 (one step that nobody foresaw must not stop the others)
            self._put_off(key, error, unforeseen=True)

    async def _look(self, key: StepKey) -> None:
        sighting = self.sightings.look(key)
        progress = self._progress.get(key, _Progress())
        record, reported = await self._read(sighting)
        if record is None:
            self._finish(key, settled=sighting.workflow_gone)
            return
        if not record.from_pod and not progress.looks:
            self._progress[key] = _Progress(looks=1)
            self._queue.add_later(key, _NODE_GRACE)
            return
        patient = progress.looks < _PATIENT_LOOKS
        outcome = await self._recorder.record(record, patient=patient)
        self._count(key, record, outcome)
        if reported and not outcome.unresolved and not outcome.awaits_source:
            self._finish(key, settled=record.state.finished)
        else:
            self._come_back(key, record, outcome)

    async def _read(self, sighting: Sighting) -> tuple[StepRecord | None, bool]:
        """What to record, None for nothing, and whether all outputs are in it that are to come."""
        if sighting.pod is None:
            return self._read_node(sighting), True
        try:
            step = read_step(sighting.pod, decode=_decode)
        except NotAStep as error:
            # The agent Pod of http templates is none; one with a broken template should be seen.
            log = self._log.warning if error.reason == "template-unreadable" else self._log.debug
            log("not a step", pod=sighting.pod["metadata"]["name"], reason=error.reason)
            return None, True
        closed = reader.closing_node(sighting.node, pod_gone=sighting.pod_gone)
        if not reader.has_begun(step, closed):
            return None, True
        if step.template is None:
            step = await self._with_template(step, sighting)
        outputs = await self._outputs(step, sighting) if reader.has_finished(step, closed) else None
        record = reader.read_pod(
            step,
            node=sighting.node,
            outputs=outputs,
            pod_gone=sighting.pod_gone,
            workflow_gone=sighting.workflow_gone,
        )
        succeeded = record.state in (State.COMPLETE, State.CACHED)
        return record, outputs is not None or not succeeded or sighting.workflow_gone

    @staticmethod
    def _read_node(sighting: Sighting) -> StepRecord | None:
        workflow, node = sighting.workflow, sighting.node
        if workflow is None or node is None:
            return None
        stopped = sighting.workflow_gone and node.get("phase") == "Running"
        if not reader.is_fulfilled(node) and not stopped:
            return None
        outputs = read_outputs(node.get("outputs") or {}, reader.repository(workflow))
        return reader.read_node(workflow, node, outputs=outputs, ended=sighting.workflow_gone)

    async def _outputs(self, step: Step, sighting: Sighting) -> Outputs | None:
        """Outputs of a step that has ended; None while there are more to come."""
        node = sighting.node
        if node is not None and reader.is_fulfilled(node):
            template = step.template or {}
            archive = template.get("archiveLocation") or reader.repository(sighting.workflow or {})
            outputs = read_outputs(node.get("outputs") or {}, archive)
            if _has_all(step, outputs):
                return outputs
            # Some versions of Argo close a node before its outputs are in.
            return await self._fetch(step) or outputs
        return await self._fetch(step)

    async def _fetch(self, step: Step) -> Outputs | None:
        try:
            return await fetch_outputs(self._client, step)
        except NodesOffloaded as error:
            self._log.warning("outputs are not recorded", step=step.execution, error=str(error))
            return Outputs(parameters={})

    async def _with_template(self, step: Step, sighting: Sighting) -> Step:
        """The step with its template from the ConfigMap that Argo put it into, else from the Workflow.

        Raises TemplateGone where neither has it.
        """
        try:
            config_map = await self._client.get(CONFIG_MAPS, step.pod_name, namespace=step.namespace)
        except NotFound:
            template = _template_of_node(sighting)
        else:
            text = (config_map.get("data") or {}).get(names.ENV_TEMPLATE)
            template = decode_template(text, _decode) if text else _template_of_node(sighting)
        if template is None:
            raise TemplateGone(f"the template of Pod {step.pod_name} is in no ConfigMap and no Workflow")
        return dataclasses.replace(step, template=template)

    def _count(self, key: StepKey, record: StepRecord, outcome: Outcome) -> None:
        if outcome.awaits_source:
            return
        since = self._since.pop(key, None)
        if not outcome.written:
            metrics.UNCHANGED.inc()
            return
        metrics.RECORDED.labels(state=record.state.value).inc()
        if since is not None:
            metrics.LAG.observe(time.monotonic() - since)
        self._log.info("recorded", step=record.external_id, state=record.state.value, run=record.run.name)

    def _finish(self, key: StepKey, *, settled: bool) -> None:
        self._progress.pop(key, None)
        self._since.pop(key, None)
        self._mark(key, failing=False)
        if settled:
            self.sightings.settle(key)

    def _come_back(self, key: StepKey, record: StepRecord, outcome: Outcome) -> None:
        progress = self._progress.setdefault(key, _Progress())
        progress.failures = 0
        progress.looks += 1
        self._mark(key, failing=False)
        if progress.looks < _LOOKS:
            metrics.RETRIES.labels(reason="incomplete").inc()
            self._queue.add_later(key, _delay(progress.looks))
            return
        self._log.warning(
            "a step stays incomplete: some of its artifacts or outputs are not known",
            step=record.external_id,
            artifacts=list(outcome.unresolved),
        )
        self._finish(key, settled=record.state.finished)

    def _mark(self, key: StepKey, *, failing: bool) -> None:
        (self._failing.add if failing else self._failing.discard)(key)
        metrics.FAILING.set(len(self._failing))

    def _put_off(self, key: StepKey, error: Exception, *, unforeseen: bool = False) -> None:
        progress = self._progress.setdefault(key, _Progress())
        progress.failures += 1
        delay = _delay(progress.failures)
        metrics.RETRIES.labels(reason="error").inc()
        self._mark(key, failing=True)
        self._log.warning(
            "a step was not recorded; it is tried again",
            step="/".join(key),
            seconds=delay,
            error=f"{type(error).__name__}: {error}",
            exc_info=error if unforeseen else None,
        )
        self._queue.add_later(key, delay)


def _delay(tries: int) -> float:
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(tries - 1, 20))


def _has_all(step: Step, outputs: Outputs) -> bool:
    template = step.template or {}
    wanted = {str(p.get("name")) for p in declared(template, "parameters")}
    wanted_artifacts = {str(a.get("name")) for a in declared(template, "artifacts")}
    return (
        wanted <= set(outputs.parameters)
        and wanted_artifacts <= {a.name for a in outputs.artifacts}
        and (outputs.result is not None or not step.wants_result)
    )


def _template_of_node(sighting: Sighting) -> Mapping[str, Any] | None:
    """The Workflow's own template, with the node's inputs in place of what Argo would have filled in."""
    if sighting.workflow is None or sighting.node is None:
        return None
    template = reader.find_template(sighting.workflow, sighting.node)
    if template is None:
        return None
    inputs = sighting.node.get("inputs") or {}
    return {**template, "inputs": inputs, "archiveLocation": reader.repository(sighting.workflow)}
