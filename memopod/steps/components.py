"""The parts of a step that can decide its result: named components of a Pod and its template.

The rule is an exclude list: what is not known to be irrelevant counts. A component is one field of
one thing (`pod.securityContext`, `run.1.main.image`, `template.outputs.artifacts`), so that two steps
can be compared by name. No two fields share a name: the parts of a name are joined by dots, and a dot
inside a part is escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memopod.steps import names
from memopod.steps.argo import Step, containers, environment
from memopod.steps.locations import KINDS
from memopod.steps.volumes import MOUNTS, added_volumes, counted_volumes, without_added

_PLACEMENT = frozenset(
    # Where, when and with how much a step runs, not what it computes.
    {
        *("nodeName", "nodeSelector", "affinity", "topologySpreadConstraints", "tolerations"),
        *("priority", "priorityClassName", "preemptionPolicy", "schedulerName", "schedulingGates"),
        *("activeDeadlineSeconds", "resources", "overhead"),
    }
)
_TEMPLATE_EXCLUDED = _PLACEMENT | {
    # Names and bookkeeping.
    *("name", "metadata", "metrics", "synchronization"),
    # Its effect is in the Pod; its text may hold the run's ids.
    "podSpecPatch",
    # Counted from the Pod, where they have been resolved, and only where mounted.
    "volumes",
    # How often and how long it is tried, and where its outputs go by default.
    *("retryStrategy", "timeout", "pendingTimeout", "archiveLocation"),
}
_TEMPLATE_SPLIT = ("inputs", "outputs", "script")
"""Fields of a template whose own fields are components, to tell what changed in them."""
_NOT_READ = KINDS.keys() | {"artifactGC", "deleted"}
"""Fields of an input artifact that tell where it is and what becomes of it, which Argo hands on from its
producer: the outputs of a reused step are `artifactGC: Never`, and their readers the same steps as before.
"""
_POD_EXCLUDED = _PLACEMENT | {"containers", "initContainers", "volumes"}
"""Containers and volumes are counted on their own."""
_RESOURCES = frozenset(("resources", "resizePolicy"))
_CONTAINER_EXCLUDED = _RESOURCES | {"name", "command", "args", "env", *MOUNTS}
"""The name of a container is part of its components' names; the others are counted on their own."""
_RUN_ENVIRONMENT = frozenset(
    # Exactly what Argo 3.4 - 4.1 sets, and not all of ARGO_*: a user's own variable counts, whatever its
    # name. ARGO_INCLUDE_SCRIPT_OUTPUT is a component of its own.
    {
        *("ARGO_ARTIFACT_PLUGIN_NAMES", "ARGO_CONTAINER_ARGS_FILE", "ARGO_CONTAINER_NAME"),
        *("ARGO_CONTAINER_RUNTIME_EXECUTOR", "ARGO_DEADLINE", "ARGO_INCLUDE_SCRIPT_OUTPUT"),
        *("ARGO_INITLESS_POD", "ARGO_NODE_ID", "ARGO_POD_NAME", "ARGO_POD_UID", "ARGO_PROGRESS_FILE"),
        *("ARGO_PROGRESS_FILE_TICK_DURATION", "ARGO_PROGRESS_PATCH_TICK_DURATION", "ARGO_TEMPLATE"),
        *("ARGO_TRACE", "ARGO_WAIT_FOR_READY", "ARGO_WORKFLOW_NAME", "ARGO_WORKFLOW_UID"),
        *("TRACEPARENT", "TRACESTATE"),
    }
)
_ARGOS_CONTAINERS = frozenset(("init", "wait", "supervisor"))
_RUN_METADATA = frozenset(
    # Labels and annotations that say which run this is, or how far it has come. Others count where a
    # step reads them, Argo's too (`workflows.argoproj.io/creator`).
    {
        *(names.ARGO_WORKFLOW, names.ARGO_COMPLETED, names.ARGO_NODE_ID, names.ARGO_NODE_NAME),
        *(names.ARGO_OUTPUTS, names.ARGO_OUTPUTS_COMPLETED, names.ARGO_TEMPLATE_ANNOTATION),
        *("workflows.argoproj.io/trace-id", "workflows.argoproj.io/span-id"),
        *("workflows.argoproj.io/progress", "workflows.argoproj.io/pod-name-format"),
        "pipeline/runid",
    }
)


def base_components(step: Step, ignored: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Component name -> JSON value, of all that the Pod itself tells.

    `ignored` are names of containers that do not count.
    """
    counted = counted_containers(step, ignored)
    volumes = counted_volumes(step.pod, counted)
    components: dict[str, Any] = {
        "volumes": volumes,
        "downward": _downward(step, counted, volumes),
        "result": step.wants_result,
        "salt": step.annotations.get(names.SALT, ""),
    }
    for field, value in step.pod["spec"].items():
        if field not in _POD_EXCLUDED:
            components[_named("pod", field)] = value
    components |= _template(step.template)
    init = step.pod["spec"].get("initContainers") or ()
    added = added_volumes(step.pod)
    for position, container in enumerate(counted):
        stage = "init" if any(container is c for c in init) else "run"
        prefix = _named(stage, str(position), str(container.get("name")))
        for field, value in _container(container, added):
            components[f"{prefix}.{_escaped(field)}"] = value
    return components


def template_components(template: Mapping[str, Any]) -> dict[str, Any]:
    """Component name -> JSON value, of all that a template alone tells, where its Pod is not known.

    The text of `podSpecPatch` counts here: there is no Pod that shows its effect.
    """
    patch = template.get("podSpecPatch")
    return {**dict(_template(template)), **({"template.podSpecPatch": patch} if patch else {})}


def counted_containers(step: Step, ignored: frozenset[str] = frozenset()) -> list[Mapping[str, Any]]:
    """The Pod's containers but for Argo's own and those that the cluster's rules ignore."""
    return [
        container
        for container in containers(step.pod)
        if container.get("name") not in ignored and not _is_argos(container)
    ]


def own_command(command: Sequence[str]) -> list[str]:
    """A container's command without the emissary that Argo puts in front of it."""
    wrapped = len(command) > 2 and str(command[0]).endswith("/argoexec") and command[1] == "emissary"
    if wrapped and "--" in command:
        return list(command[command.index("--") + 1 :])
    return list(command)


def has_args_file(step: Step) -> bool:
    """Whether Argo put a container's arguments into the ConfigMap that is named after the Pod."""
    return any(environment(container, names.ENV_ARGS_FILE) for container in containers(step.pod))


def _named(*parts: str) -> str:
    return ".".join(map(_escaped, parts))


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace(".", "\\.") if "." in part or "\\" in part else part


def _is_argos(container: Mapping[str, Any]) -> bool:
    """Argo's own run `argoexec` itself; a user's container of that name is wrapped by its emissary."""
    if container.get("name") not in _ARGOS_CONTAINERS:
        return False
    command = [str(word) for word in container.get("command") or ()]
    return bool(command) and command[0].endswith("argoexec") and command[1:2] != ["emissary"]


def _template(template: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    if template is None:
        yield "template.offloaded", True
        return
    for field, value in template.items():
        if field in _TEMPLATE_EXCLUDED:
            continue
        counted = _counted_field(field, value)
        if field in _TEMPLATE_SPLIT and isinstance(counted, dict) and counted:
            for inner, part in counted.items():
                yield _named("template", field, inner), part
        else:
            yield _named("template", field), counted


def _counted_field(field: str, value: Any) -> Any:
    """What counts of a template's field: resources and the places of input artifacts do not."""
    match field:
        case "container" | "script" if isinstance(value, dict):
            return _without_resources(value)
        case "initContainers" | "sidecars" if value:
            return [_without_resources(container) for container in value]
        case "containerSet" if isinstance(value, dict):
            members = [_without_resources(c) for c in value.get("containers") or ()]
            return {**{k: v for k, v in value.items() if k != "retryStrategy"}, "containers": members}
        case "inputs" if isinstance(value, dict) and value.get("artifacts"):
            artifacts = [{k: v for k, v in a.items() if k not in _NOT_READ} for a in value["artifacts"]]
            return {**value, "artifacts": artifacts}
    return value


def _without_resources(container: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in container.items() if k not in _RESOURCES}


def _container(container: Mapping[str, Any], added: Mapping[Any, str | None]) -> Iterator[tuple[str, Any]]:
    yield "command", own_command(container.get("command") or ())
    yield "args", list(container.get("args") or ())
    yield "env", [v for v in container.get("env") or () if not _is_run_environment(v)]
    for field in MOUNTS:
        mounts = without_added(container.get(field) or (), added)
        if mounts:
            yield field, mounts
    for field, value in container.items():
        if field not in _CONTAINER_EXCLUDED:
            yield field, value


def _is_run_environment(variable: Mapping[str, Any]) -> bool:
    return variable.get("name") in _RUN_ENVIRONMENT


def _downward(
    step: Step, counted: Sequence[Mapping[str, Any]], volumes: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Values of excluded fields that the step reads through the downward API.

    The run's identity (its names, UIDs, addresses and node) is left out: it differs in each run, and
    who reads it gets what Kubernetes says, reused or not.
    """
    values: list[Any] = []
    for container in counted:
        for variable in container.get("env") or ():
            if variable.get("valueFrom") and not _is_run_environment(variable):
                values += _field_values(step, variable["valueFrom"], container)
    for volume in volumes:
        for item in _downward_items(volume):
            values += _field_values(step, item, None)
    return values


def _downward_items(volume: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from (volume.get("downwardAPI") or {}).get("items") or ()
    for source in (volume.get("projected") or {}).get("sources") or ():
        yield from (source.get("downwardAPI") or {}).get("items") or ()


def _field_values(
    step: Step, reference: Mapping[str, Any], container: Mapping[str, Any] | None
) -> Iterator[Any]:
    path = str((reference.get("fieldRef") or {}).get("fieldPath", ""))
    for field in ("labels", "annotations"):
        entries: Mapping[str, str] = step.pod["metadata"].get(field) or {}
        if path == f"metadata.{field}":
            yield {k: v for k, v in entries.items() if not _is_run_metadata(k)}
        elif path.startswith(f"metadata.{field}['"):
            name = path[len(f"metadata.{field}['") : -2]
            if not _is_run_metadata(name):
                yield [path, entries.get(name)]
    resource = reference.get("resourceFieldRef")
    if resource:
        named = resource.get("containerName")
        target = next((c for c in containers(step.pod) if c.get("name") == named), container)
        own = (target or {}).get("resources") or {}
        side, _, name = str(resource.get("resource", "")).partition(".")
        # What a container leaves open, the Pod's own limits decide.
        open_ = (own.get(side) or {}).get(name) is None
        yield [resource, own, step.pod["spec"].get("resources") if open_ else None]


def _is_run_metadata(name: str) -> bool:
    return name in _RUN_METADATA or name.startswith(names.OWN_PREFIX)
