"""From what is to be seen of a step to what is recorded of it; what is not at hand is fetched."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from memopod.kube import CONFIG_MAPS, PODS, WORKFLOWS, Client, NotFound
from memopod.kube.outputs import fetch_outputs
from memopod.steps import NotAStep, Outputs, Step, names, read_step
from memopod.steps.argo import decode_template
from memopod.steps.outputs import NodesOffloaded, declared, read_outputs, workflow_nodes
from metadata_writer import metrics, reader, states, templates
from metadata_writer.essentials import essential_pod, essential_workflow
from metadata_writer.records import State, StepRecord
from metadata_writer.sighting import ObjectRef, Sighting, StepKey
from metadata_writer.sightings import Sightings

_decode = msgspec.json.Decoder().decode
_BROKEN = "template-unreadable"


class TemplateGone(LookupError):
    """A step's template was offloaded, and neither its ConfigMap nor its node is there (yet)."""


class TemplateUnreadable(ValueError):
    """A step's template is no template: the step cannot be recorded as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """`record` is None where there is nothing to record (yet).

    `reported`: all outputs are in it that are to come. `closed`: nothing more is to come at all. `pod`
    is the Pod that is there, None if it is gone. `version` is that of what was seen.
    """

    record: StepRecord | None
    reported: bool = True
    closed: bool = False
    pod: Mapping[str, Any] | None = None
    version: int = dataclasses.field(default=0, compare=False)


class Observer:
    """Reads steps; what is not kept is asked of the API server, which raises its ApiError."""

    def __init__(self, client: Client, sightings: Sightings) -> None:
        self._client = client
        self._sightings = sightings
        self._log = structlog.get_logger()

    async def observe(self, key: StepKey) -> Observation:
        """What there is to record of a step now.

        Raises ApiError, TemplateGone and TemplateUnreadable.
        """
        sighting = await self._complete(key)
        return dataclasses.replace(await self._observe(sighting), version=sighting.version)

    async def _observe(self, sighting: Sighting) -> Observation:
        if sighting.pod is None:
            record = self._read_node(sighting)
            return Observation(record=record, closed=sighting.workflow_gone or record is not None)
        try:
            step = read_step(sighting.pod, decode=_decode)
        except NotAStep as error:
            if error.reason == _BROKEN:
                raise TemplateUnreadable(_BROKEN) from error
            # The agent Pod of http templates, for one.
            self._log.debug("not a step", pod=sighting.pod["metadata"]["name"], reason=error.reason)
            return Observation(record=None, closed=True)
        return await self._observe_pod(step, sighting)

    async def _observe_pod(self, step: Step, sighting: Sighting) -> Observation:
        closed = states.closing_node(sighting.node, pod_gone=sighting.pod_gone)
        if not states.has_begun(step, closed):
            return Observation(record=None, closed=sighting.workflow_gone and sighting.pod_gone)
        if step.template is None:
            step = await self._with_template(step, sighting)
        outputs = await self._outputs(step, sighting) if states.has_finished(step, closed) else None
        record = reader.read_pod(
            step,
            node=sighting.node,
            outputs=outputs,
            pod_gone=sighting.pod_gone,
            workflow_gone=sighting.workflow_gone,
            workflow=sighting.workflow,
        )
        succeeded = record.state in (State.COMPLETE, State.CACHED)
        return Observation(
            record=record,
            reported=outputs is not None or not succeeded or sighting.workflow_gone,
            closed=sighting.workflow_gone or states.is_fulfilled(sighting.node),
            pod=None if sighting.pod_gone else sighting.pod,
        )

    async def _complete(self, key: StepKey) -> Sighting:
        """What is kept of a step, and the rest from the API server."""
        sighting = self._sightings.look(key)
        if sighting.pod is None and sighting.pod_at is not None:
            pod = await self._fetch_pod(sighting.pod_at)
            sighting = dataclasses.replace(sighting, pod=pod, pod_at=sighting.pod_at if pod else None)
        lacks = sighting.workflow is None or self._sightings.lacks_node(key)
        if sighting.workflow_at is not None and lacks:
            workflow = await self._fetch_workflow(sighting.workflow_at)
            if workflow is not None:
                sighting = dataclasses.replace(
                    sighting,
                    workflow=essential_workflow(workflow),
                    node=_node(workflow, key[1]) or sighting.node,
                )
        return sighting

    async def _fetch_pod(self, ref: ObjectRef) -> Mapping[str, Any] | None:
        metrics.FETCHED.labels(kind="pod").inc()
        try:
            pod = await self._client.get(PODS, ref.name, namespace=ref.namespace)
        except NotFound:
            return None
        return essential_pod(pod) if pod["metadata"]["uid"] == ref.uid else None

    async def _fetch_workflow(self, ref: ObjectRef) -> Mapping[str, Any] | None:
        metrics.FETCHED.labels(kind="workflow").inc()
        try:
            workflow = await self._client.get(WORKFLOWS, ref.name, namespace=ref.namespace)
        except NotFound:
            return None
        return workflow if workflow["metadata"]["uid"] == ref.uid else None

    @staticmethod
    def _read_node(sighting: Sighting) -> StepRecord | None:
        workflow, node = sighting.workflow, sighting.node
        if workflow is None or node is None:
            return None
        stopped = sighting.workflow_gone and node.get("phase") == "Running"
        if not states.is_fulfilled(node) and not stopped:
            return None
        reported = node.get("outputs") or (sighting.result or {}).get("outputs") or {}
        outputs = read_outputs(reported, templates.repository(workflow))
        return reader.read_node(workflow, node, outputs=outputs, ended=sighting.workflow_gone)

    async def _outputs(self, step: Step, sighting: Sighting) -> Outputs | None:
        """Outputs of a step that has ended; None while there are more to come."""
        archive = (step.template or {}).get("archiveLocation")
        if sighting.result is not None:
            return read_outputs(sighting.result.get("outputs") or {}, archive)
        node = sighting.node
        if node is not None and states.is_fulfilled(node):
            archive = archive or templates.repository(sighting.workflow or {})
            outputs = read_outputs(node.get("outputs") or {}, archive)
            if _has_all(step, outputs):
                return outputs
            # Some versions of Argo close a node before its outputs are in.
            return await self._fetch_outputs(step) or outputs
        return await self._fetch_outputs(step)

    async def _fetch_outputs(self, step: Step) -> Outputs | None:
        metrics.FETCHED.labels(kind="outputs").inc()
        try:
            return await fetch_outputs(self._client, step)
        except NodesOffloaded as error:
            metrics.OFFLOADED.inc()
            self._log.warning("outputs are not recorded", step=step.execution, error=str(error))
            return Outputs(parameters={})

    async def _with_template(self, step: Step, sighting: Sighting) -> Step:
        """The step with its offloaded template: from its ConfigMap, or, once Argo deleted that, its node.

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


def _node(workflow: Mapping[str, Any], node_id: str) -> Mapping[str, Any] | None:
    try:
        return workflow_nodes(workflow).get(node_id)
    except ValueError:  # packed in a way that nobody can read, or offloaded
        return None


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
    template = templates.find_template(sighting.workflow, sighting.node)
    if template is None:
        return None
    inputs = sighting.node.get("inputs") or {}
    return {**template, "inputs": inputs, "archiveLocation": templates.repository(sighting.workflow)}
