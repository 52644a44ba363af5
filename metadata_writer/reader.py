"""From a step to what is recorded of it: pure, from the Pod, its node in the Workflow and its outputs.

A Pod says most. What Argo strips from it (3.6 and later: the values of input parameters) is in the
Workflow's `status.nodes`, which alone is left once the Pod is deleted.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from memopod.steps import Outputs, Step, names
from memopod.steps.argo import main_container
from memopod.steps.locations import resolve
from memopod.steps.outputs import OutputArtifact
from memopod.steps.times import from_text
from metadata_writer.components import Component, read_component, read_pipeline
from metadata_writer.records import Input, Output, Run, StepRecord, Value, fits
from metadata_writer.states import is_fulfilled, node_state, pod_state
from metadata_writer.templates import find_template, repository, template_name

KFP_ARGUMENTS: Final = "pipelines.kubeflow.org/arguments.parameters"
"""Annotation of Kubeflow Pipelines v1: a JSON object, name of a component's input -> value."""

_KFP_INPUTS = "/tmp/inputs/"  # noqa: S108 (a name, not a file)
_ATTEMPT = re.compile(r"\((\d{1,6})\)$")
"""The attempts of a step are called `<step>(0)`, `<step>(1)`, ...; the items of a loop `<step>(0:<item>)`."""
_ARGO_CONTAINERS = frozenset({"wait", "init", "supervisor"})


def read_pod(
    step: Step,
    *,
    node: Mapping[str, Any] | None = None,
    outputs: Outputs | None = None,
    pod_gone: bool = False,
    workflow_gone: bool = False,
    workflow: Mapping[str, Any] | None = None,
) -> StepRecord:
    """What is known of a step whose Pod was seen.

    `node` is its entry in the Workflow's `status.nodes`, `outputs` what it put out, both None while
    unknown. Where Pod and Workflow are gone, a step that has not finished never will. `workflow` (it
    may come without nodes) has the artifact repository, for a template that does not repeat it.
    """
    state = pod_state(step, node, pod_gone=pod_gone, workflow_gone=workflow_gone)
    own_name = step.template_name or task_name(step.node_name) or step.pod_name
    component = read_component(own_name, step.annotations)
    return StepRecord(
        external_id=step.execution,
        run=Run(step.workflow, step.namespace, step.workflow_uid, read_pipeline(workflow or {})),
        type_name=component.type_name,
        component_id=component.name,
        state=state,
        custom={
            **_arguments(step.annotations),
            **_input_parameters(step.template, node),
            **_output_parameters(outputs),
            **_identity(step.workflow, step.namespace, step.node_name),
            **_pod_facts(step, node if state.finished and is_fulfilled(node) else None),
            **_source_of_kubeflow(step),
        },
        inputs=_inputs(step.template, repository(workflow or {})),
        outputs=_outputs(outputs, component, step.template_name, step.workflow),
        source_execution=step.annotations.get(names.SOURCE_EXECUTION) if step.reused else None,
    )


def read_node(
    workflow: Mapping[str, Any], node: Mapping[str, Any], *, outputs: Outputs, ended: bool = False
) -> StepRecord:
    """What the Workflow alone says of a step whose Pod is gone, or that never had one (Argo's memoization).

    `ended`: the Workflow is gone too, so a node that Argo did not close never will be.
    """
    metadata = workflow["metadata"]
    name, namespace = str(metadata["name"]), str(metadata.get("namespace", ""))
    node_name = str(node.get("name", ""))
    template = find_template(workflow, node)
    named = template_name(node)
    annotations = ((template or {}).get("metadata") or {}).get("annotations") or {}
    component = read_component(named or task_name(node_name), annotations)
    return StepRecord(
        external_id=f"{metadata['uid']}/{node['id']}",
        run=Run(name, namespace, str(metadata["uid"]), read_pipeline(workflow)),
        type_name=component.type_name,
        component_id=component.name,
        state=node_state(node, ended=ended),
        custom={
            **_arguments(annotations),
            **_input_parameters(None, node),
            **_output_parameters(outputs),
            **_identity(name, namespace, node_name),
            **_present(
                image=((template or {}).get("container") or (template or {}).get("script") or {}).get(
                    "image"
                ),
                host_node=node.get("hostNodeName"),
                started_at=_milliseconds(node.get("startedAt")),
                finished_at=_milliseconds(node.get("finishedAt")),
            ),
        },
        inputs=_inputs(node, repository(workflow)),
        outputs=_outputs(outputs, component, named, name),
        from_pod=False,
    )


def last_part(node_name: str) -> str:
    """The task's own name: `train(0)` of `run-x7.prepare.train(0)`."""
    end = _before_brackets(node_name)
    return node_name[max(node_name.rfind(mark, 0, end) for mark in ".[]()") + 1 :] or node_name


def task_name(node_name: str) -> str:
    """The same without the number of an attempt or the item of a loop: `train`."""
    part = last_part(node_name)
    return part[: _before_brackets(part)] or part


def _before_brackets(name: str) -> int:
    """Where the groups in brackets begin that a name ends with; they may hold anything, brackets too."""
    end, depth = len(name), 0
    for at in range(len(name) - 1, -1, -1):
        if name[at] == ")":
            depth += 1
        elif name[at] == "(" and depth:
            depth -= 1
            end = at if not depth else end
        elif not depth:
            break
    return end


def _identity(workflow: str, namespace: str, node_name: str) -> dict[str, Value]:
    attempt = _ATTEMPT.search(node_name)
    return _present(
        workflow=workflow,
        namespace=namespace,
        node_name=node_name,
        display_name=last_part(node_name),
        retries=int(attempt.group(1)) if attempt is not None else 0,
    )


def _pod_facts(step: Step, closed: Mapping[str, Any] | None) -> dict[str, Value]:
    container = own_container(step.pod) or {}
    status = _container_status(step.pod, str(container.get("name", "")))
    state = status.get("state") or {}
    ended = state.get("terminated") or {}
    started = ended.get("startedAt") or (state.get("running") or {}).get("startedAt")
    return _present(
        kfp_pod_name=step.pod_name,
        image=container.get("image"),
        image_id=status.get("imageID"),
        fingerprint=step.annotations.get(names.KEY),
        reason=step.annotations.get(names.REASON),
        host_node=step.pod["spec"].get("nodeName"),
        started_at=_milliseconds(started or (step.pod.get("status") or {}).get("startTime")),
        finished_at=_milliseconds(ended.get("finishedAt") or (closed or {}).get("finishedAt")),
    )


def _source_of_kubeflow(step: Step) -> dict[str, Value]:
    """The store's id of the execution that Kubeflow's cache server reused."""
    source = step.labels.get(names.KFP_EXECUTION_ID, "")
    if step.labels.get(names.KFP_REUSED) != "true" or not source.isdecimal() or not fits(int(source)):
        return {}
    return {"cached_execution_id": int(source)}


def own_container(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The step's own container: `main`, or the first that is not Argo's where a set of them runs."""
    main = main_container(pod)
    own = (c for c in pod["spec"].get("containers") or () if c.get("name") not in _ARGO_CONTAINERS)
    return main or next(own, None)


def _container_status(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((s for s in statuses if s.get("name") == name), {})


def _arguments(annotations: Mapping[str, str]) -> dict[str, Value]:
    """Arguments as Kubeflow's compiler noted them, typed; unreadable ones are left out."""
    try:
        # Strict: a text that it accepts can be stored.
        arguments = msgspec.json.decode(annotations.get(KFP_ARGUMENTS) or "{}")
    except ValueError:
        return {}
    if not isinstance(arguments, dict):
        return {}
    return {f"input:{name}": _typed(value) for name, value in arguments.items() if value is not None}


def _typed(value: Any) -> Value:
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if fits(value) else str(value)
    return json.dumps(value, sort_keys=True)


def _input_parameters(template: Mapping[str, Any] | None, node: Mapping[str, Any] | None) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for holder in (node, template):
        for parameter in ((holder or {}).get("inputs") or {}).get("parameters") or ():
            if parameter.get("name") and parameter.get("value") is not None:
                found[f"input:{parameter['name']}"] = str(parameter["value"])
    return found


def _output_parameters(outputs: Outputs | None) -> dict[str, Value]:
    if outputs is None:
        return {}
    found: dict[str, Value] = {f"output:{name}": value for name, value in outputs.parameters.items()}
    if outputs.result is not None:
        found["output:result"] = str(outputs.result)
    return found


def _inputs(holder: Mapping[str, Any] | None, archive: Mapping[str, Any] | None) -> tuple[Input, ...]:
    """Input artifacts of a template or a node; raw ones and the like have no place to point at."""
    holder = holder or {}
    found = []
    for artifact in (holder.get("inputs") or {}).get("artifacts") or ():
        location = resolve(artifact, holder.get("archiveLocation") or archive)
        if location is not None:
            found.append(Input(_input_name(artifact), location.uri))
    return tuple(found)


def _input_name(artifact: Mapping[str, Any]) -> str:
    """Kubeflow v1 puts an input at `/tmp/inputs/<name>/data`; elsewhere its own name says more."""
    path = str(artifact.get("path") or "")
    if path.startswith(_KFP_INPUTS):
        return path.removeprefix(_KFP_INPUTS).removesuffix("/data")
    return str(artifact.get("name") or path)


def _outputs(
    outputs: Outputs | None, component: Component, template_name: str, run: str
) -> tuple[Output, ...]:
    found: dict[str, Output] = {}
    for artifact in outputs.artifacts if outputs else ():
        name = artifact.name.removeprefix(f"{template_name}-") if template_name else artifact.name
        custom = _output_custom(artifact, name, run)
        found[name] = Output(name, component.output_type(name), artifact.location.uri, custom)
    return tuple(found.values())


def _output_custom(artifact: OutputArtifact, name: str, run: str) -> dict[str, Value]:
    return {
        "name": name,
        "pipeline_name": run,
        "run_id": run,
        "argo_artifact": json.dumps(artifact.reported, sort_keys=True),
        **_present(size=artifact.size, digest=artifact.digest),
    }


def _milliseconds(text: Any) -> int | None:
    moment = from_text(text)
    return None if moment is None else round(moment.timestamp() * 1000)


def _present(**values: Any) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value not in (None, "")}
