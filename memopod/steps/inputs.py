"""What a step reads from outside its Pod, and how that enters its entry key.

A ConfigMap enters by content, a Secret by reference only (it is in the Pod), an input artifact by
its identity: its content where the object store can tell, else its location together with a version
of it, or together with the entry that produced it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memopod.steps import names
from memopod.steps.argo import Step
from memopod.steps.components import counted_containers, has_args_file
from memopod.steps.key import KeyRules, Unkeyable
from memopod.steps.locations import Location, resolve
from memopod.steps.volumes import counted_volumes

_NO_LOCATION = frozenset(
    # Fields of an artifact that do not say where it is; any other one may.
    {
        *("name", "path", "mode", "optional", "archive", "recurseMode", "subPath", "archiveLogs"),
        *("artifactGC", "deleted", "globalName", "from", "fromExpression"),
    }
)


@dataclass(frozen=True, slots=True)
class InputArtifact:
    """An input artifact that an object store holds."""

    name: str
    location: Location


@dataclass(slots=True)
class ConfigMapUse:
    """What a step reads of one ConfigMap: some keys, or all. `optional`: it may be absent."""

    keys: set[str] = field(default_factory=set)
    whole: bool = False
    optional: bool = True


def offload_name(step: Step) -> str | None:
    """Name of the ConfigMap with the template or arguments that Argo offloaded, None if it did not."""
    return step.pod_name if step.template is None or has_args_file(step) else None


def offloaded_arguments(data: Mapping[str, str]) -> Any:
    """What enters the key of the ConfigMap of `offload_name`: all that is in it but the template."""
    others = {name: text for name, text in data.items() if name != names.ENV_TEMPLATE}
    return others if others.keys() - {names.ENV_ARGS_FILE} else others.get(names.ENV_ARGS_FILE)


def config_maps(step: Step, rules: KeyRules) -> dict[str, ConfigMapUse]:
    """The ConfigMaps that the step's containers read, by name, without the one of `offload_name`."""
    uses: dict[str, ConfigMapUse] = {}
    counted = counted_containers(step, rules.ignored_containers)
    for reference, keys in _references(step, counted):
        use = uses.setdefault(str(reference.get("name", "")), ConfigMapUse())
        use.optional = use.optional and bool(reference.get("optional"))
        if keys is None:
            use.whole = True
        else:
            use.keys.update(keys)
    return uses


def _references(
    step: Step, counted: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], list[str] | None]]:
    for container in counted:
        for variable in container.get("env") or ():
            reference = (variable.get("valueFrom") or {}).get("configMapKeyRef")
            if reference:
                yield reference, [str(reference.get("key", ""))]
        for source in container.get("envFrom") or ():
            if source.get("configMapRef"):
                yield source["configMapRef"], None
    for volume in counted_volumes(step.pod, counted):
        sources = [volume, *((volume.get("projected") or {}).get("sources") or ())]
        for source in sources:
            reference = source.get("configMap")
            if reference:
                items = reference.get("items")
                yield reference, [str(i.get("key", "")) for i in items] if items else None


def config_map_content(use: ConfigMapUse, config_map: Mapping[str, Any]) -> dict[str, Any]:
    """What enters the key of a ConfigMap: `{"data": {...}, "binaryData": {...}}` of the keys read."""
    return {
        part: {k: v for k, v in (config_map.get(part) or {}).items() if use.whole or k in use.keys}
        for part in ("data", "binaryData")
    }


def input_artifacts(step: Step) -> list[InputArtifact]:
    """Input artifacts whose identity enters the key; those the step's annotation ignores are left out.

    Raw artifacts are in the template by content, and so is that an optional one was not given. Raises
    Unkeyable for an artifact of a kind that has no identity here (git, http, ...), whose location cannot
    be resolved, or that is not the only one of its name or has more than one location.
    """
    template = step.template or {}
    ignored = ignored_inputs(step)
    found: dict[str, InputArtifact | None] = {}
    for artifact in (template.get("inputs") or {}).get("artifacts") or ():
        name = str(artifact.get("name", ""))
        if name in found:
            raise Unkeyable("input-unknown")
        found[name] = None
        kinds = {field for field in artifact.keys() - _NO_LOCATION if artifact[field] is not None}
        if name in ignored or kinds == {"raw"} or (artifact.get("optional") and not kinds):
            continue
        location = resolve(artifact, template.get("archiveLocation")) if len(kinds) == 1 else None
        if location is None:
            raise Unkeyable("input-unknown")
        found[name] = InputArtifact(name, location)
    return [artifact for artifact in found.values() if artifact]


def ignored_inputs(step: Step) -> set[str]:
    """Names of the input artifacts that the step's annotation keeps out of its key."""
    text = step.annotations.get(names.IGNORE_INPUTS, "")
    return {name.strip() for name in text.split(",") if name.strip()}
