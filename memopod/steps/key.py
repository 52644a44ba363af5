"""The key of a step: what decides its result, and nothing else.

The rule is an exclude list. Everything in Argo's template and in the effective Pod is part of the
key unless it is known not to change what the step computes: a field that nobody thought of costs a
run, never a wrong reuse. Two stages:

- the *base key* needs the Pod alone, and is computed at admission;
- the *entry key* adds what must be asked for: the contents of ConfigMaps, what Argo offloaded, and
  the identity of each input artifact.

Each part of a key is a named component with a digest of its own, so that two keys can be compared
component by component. A change of any rule here is a new KEY_VERSION.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memopod.steps import names
from memopod.steps.argo import Step, containers, environment, main_container
from memopod.steps.framing import canonical, frame
from memopod.steps.locations import KINDS, kind_of
from memopod.steps.volumes import MOUNTS, counted_volumes, is_argos_volume, unknown_volumes

KEY_VERSION = 1
"""Version of the rules. Keys of different versions never match."""

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
_POD_EXCLUDED = _PLACEMENT | {"containers", "initContainers", "volumes"}
"""Containers and volumes are counted on their own."""
_CONTAINER_EXCLUDED = frozenset(("resources", "resizePolicy", "name", "env", *MOUNTS))
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
_RUN_METADATA = (names.ARGO_PREFIX, names.OWN_PREFIX, "pipeline/runid")


class Unkeyable(ValueError):
    """The step has no key, so it is never reused. `reason` is a slug of `memopod.steps.reasons`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Key:
    """A key: `digest` (64 hexadecimal digits), and a short digest (16) of each component by name."""

    digest: str
    components: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """What a cluster may change about keys. `ignored_containers`: sidecars that a mesh injects."""

    ignored_containers: frozenset[str] = frozenset()


def base_key(step: Step, rules: KeyRules = KeyRules()) -> Key:
    """Key of all that the Pod itself tells. Raises Unkeyable."""
    check_keyable(step, rules)
    return _key(base_components(step, rules))


def entry_key(step: Step, known: Mapping[str, Any], rules: KeyRules = KeyRules()) -> Key:
    """Key of the step as a whole: the base components, and `known`, component name -> JSON value.

    `step` must have its template (see `with_template` for an offloaded one). Raises Unkeyable.
    """
    if step.template is None:
        raise Unkeyable("template-unreadable")
    check_keyable(step, rules)
    return _key({**base_components(step, rules), **known})


def evidence(key: Key, versions: Mapping[str, Any]) -> str:
    """Digest of what a step could read at one moment: its entry key, and the versions behind it.

    Taken at release and again after the run: a ConfigMap or an input that changed in between makes
    them differ, and then nobody knows what the step really read.
    """
    return hashlib.sha256(frame("memopod-inputs-1", key.digest, canonical(versions))).hexdigest()


def with_template(step: Step, template: Mapping[str, Any]) -> Step:
    """The step with the template that Argo had offloaded."""
    return replace(step, template=template)


def check_keyable(step: Step, rules: KeyRules = KeyRules()) -> None:
    """Raise Unkeyable for a step whose result is not decided by what a key can hold.

    An offloaded template is checked as far as the Pod tells; check again once it was read.
    """
    if step.annotations.get(names.ALLOW_VOLUMES) != "true" and unknown_volumes(
        step.pod, counted_containers(step, rules)
    ):
        raise Unkeyable("volume")
    template = step.template
    if template is None:
        return
    if template.get("resource"):
        raise Unkeyable("template-resource")
    if template.get("daemon"):
        raise Unkeyable("template-daemon")
    if template.get("memoize"):
        raise Unkeyable("template-memoized")
    if not any(template.get(kind) for kind in ("container", "script", "containerSet")):
        raise Unkeyable("template-kind")
    for artifact in (template.get("outputs") or {}).get("artifacts") or ():
        kind = kind_of(artifact)
        key = str(artifact[kind].get(KINDS[kind][2], "")) if kind else ""
        if any(name and name in key for name in (step.workflow, step.workflow_uid, step.pod_name)):
            raise Unkeyable("output-key-names-run")


def counted_containers(step: Step, rules: KeyRules) -> list[Mapping[str, Any]]:
    """The Pod's containers but for Argo's own and those that the cluster's rules ignore."""
    return [
        container
        for container in containers(step.pod)
        if container.get("name") not in rules.ignored_containers and not _is_argos(container)
    ]


def _is_argos(container: Mapping[str, Any]) -> bool:
    """Argo's own run `argoexec` itself; a user's container of that name is wrapped by its emissary."""
    command = [str(word) for word in container.get("command") or ()]
    is_executor = bool(command) and command[0].endswith("argoexec") and command[1:2] != ["emissary"]
    return container.get("name") in _ARGOS_CONTAINERS and is_executor


def base_components(step: Step, rules: KeyRules) -> dict[str, Any]:
    """Component name -> JSON value, of all that the Pod itself tells."""
    counted = counted_containers(step, rules)
    components: dict[str, Any] = {
        "pod": {k: v for k, v in step.pod["spec"].items() if k not in _POD_EXCLUDED},
        "volumes": counted_volumes(step.pod, counted),
        "downward": _downward(step, counted),
        "result": step.wants_result,
        "salt": step.annotations.get(names.SALT, ""),
    }
    for field, value in _template(step.template).items():
        components[f"template.{field}"] = value
    init = step.pod["spec"].get("initContainers") or ()
    for position, container in enumerate(counted):
        stage = "init" if any(container is c for c in init) else "run"
        components |= _container(f"{stage}.{position}.{container.get('name')}", container, step.pod)
    return components


def _key(components: Mapping[str, Any]) -> Key:
    digest = hashlib.sha256(frame("memopod-key", str(KEY_VERSION)))
    short = {}
    for name in sorted(components):
        text = canonical(components[name])
        digest.update(frame(name, text))
        short[name] = hashlib.sha256(text).hexdigest()[:16]
    return Key(digest.hexdigest(), short)


def _template(template: Mapping[str, Any] | None) -> dict[str, Any]:
    if template is None:
        return {"offloaded": True}
    counted = {k: v for k, v in template.items() if k not in _TEMPLATE_EXCLUDED}
    for kind in ("container", "script"):
        if isinstance(counted.get(kind), dict):
            counted[kind] = _without_resources(counted[kind])
    for kind in ("initContainers", "sidecars"):
        if counted.get(kind):
            counted[kind] = [_without_resources(c) for c in counted[kind]]
    if isinstance(counted.get("containerSet"), dict):
        members = [_without_resources(c) for c in counted["containerSet"].get("containers") or ()]
        counted["containerSet"] = {
            **{k: v for k, v in counted["containerSet"].items() if k != "retryStrategy"},
            "containers": members,
        }
    inputs = counted.get("inputs") or {}
    if inputs.get("artifacts"):
        counted["inputs"] = {
            **inputs,
            "artifacts": [
                {k: v for k, v in artifact.items() if k not in KINDS} for artifact in inputs["artifacts"]
            ],
        }
    return counted


def _without_resources(container: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in container.items() if k not in ("resources", "resizePolicy")}


def _container(prefix: str, container: Mapping[str, Any], pod: Mapping[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in container.items() if k not in _CONTAINER_EXCLUDED}
    image = rest.pop("image", None)
    command = own_command(rest.pop("command", None) or ())
    args = rest.pop("args", None) or ()
    mounts = {
        field: [m for m in container.get(field) or () if not is_argos_volume(pod, m.get("name", ""))]
        for field in MOUNTS
    }
    return {
        f"{prefix}.image": image,
        f"{prefix}.command": command,
        f"{prefix}.args": list(args),
        f"{prefix}.env": [v for v in container.get("env") or () if not _is_run_environment(v)],
        f"{prefix}.mounts": mounts,
        f"{prefix}.rest": rest,
    }


def own_command(command: Sequence[str]) -> list[str]:
    """A container's command without the emissary that Argo puts in front of it."""
    wrapped = len(command) > 2 and str(command[0]).endswith("/argoexec") and command[1] == "emissary"
    if wrapped and "--" in command:
        return list(command[command.index("--") + 1 :])
    return list(command)


def _is_run_environment(variable: Mapping[str, Any]) -> bool:
    return variable.get("name") in _RUN_ENVIRONMENT


def _downward(step: Step, counted: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Values of excluded fields that the step reads through the downward API.

    The run's identity (its names, UIDs, addresses and node) is left out: it differs in each run, and
    who reads it gets what Kubernetes says, reused or not.
    """
    values: list[Any] = []
    for container in counted:
        for variable in container.get("env") or ():
            if not _is_run_environment(variable):
                values += _field_values(step, variable.get("valueFrom") or {}, container)
    for volume in counted_volumes(step.pod, counted):
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
            yield {k: v for k, v in entries.items() if not k.startswith(_RUN_METADATA)}
        elif path.startswith(f"metadata.{field}['"):
            name = path[len(f"metadata.{field}['") : -2]
            if not name.startswith(_RUN_METADATA):
                yield [path, entries.get(name)]
    resource = reference.get("resourceFieldRef")
    if resource:
        named = resource.get("containerName")
        target = next((c for c in containers(step.pod) if c.get("name") == named), container)
        yield [resource.get("resource"), (target or {}).get("resources")]


def args_file(step: Step) -> str | None:
    """Path of the file that holds `main`'s arguments, where Argo put them into a ConfigMap."""
    main = main_container(step.pod)
    return environment(main, names.ENV_ARGS_FILE) if main else None
