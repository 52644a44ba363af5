"""From the store's messages to the model. The property names are the metadata writer's.

Records of Kubeflow's own writers are read as far as they say the same: its metadata writer sets no
state and no times, its v2 driver keeps `inputs` and `outputs` as structs, `cached_execution_id` as
text and the step's name as `task_name`.
"""

from collections.abc import Mapping
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.lineage.model import Artifact, Execution, State, Value
from memopod.mlmd import from_properties

INPUT_EVENTS = frozenset({mlmd.Event.INPUT, mlmd.Event.DECLARED_INPUT, mlmd.Event.INTERNAL_INPUT})
OUTPUT_EVENTS = frozenset({mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT, mlmd.Event.INTERNAL_OUTPUT})


def execution(message: Any) -> Execution:
    """An `ml_metadata.Execution`."""
    properties = _properties(message)
    component = message.type.removeprefix("components.")
    names = ("display_name", "task_name", "component_id")
    return Execution(
        id=message.id,
        step=_first(properties, *names) or component or f"execution {message.id}",
        run=_first(properties, "run_id", "workflow", "pipeline_name"),
        component=component,
        state=State(mlmd.Execution.State.Name(message.last_known_state)),
        inputs=_values(properties, "input"),
        outputs=_values(properties, "output"),
        started_at=_number(properties.get("started_at")),
        finished_at=_number(properties.get("finished_at")),
        cached_execution_id=_number(properties.get("cached_execution_id")) or None,
        reason=_first(properties, "reason"),
        pod=_first(properties, "kfp_pod_name", "pod_name"),
        namespace=_first(properties, "namespace"),
        image=_first(properties, "image"),
        fingerprint=_first(properties, "fingerprint", "cache_fingerprint"),
        unresolved_inputs=_list(properties, "unresolved_inputs"),
        unresolved_outputs=_list(properties, "unresolved_outputs"),
        workflow_uid=message.external_id.partition("/")[0],
    )


def artifact(message: Any) -> Artifact:
    """An `ml_metadata.Artifact`."""
    properties = _properties(message)
    return Artifact(
        id=message.id,
        name=_first(properties, "display_name", "name") or message.name,
        type=message.type,
        uri=message.uri,
        run=_first(properties, "run_id"),
        size=_number(properties.get("size")),
        digest=_first(properties, "digest"),
    )


def context_namespace(message: Any) -> str:
    """The namespace of an `ml_metadata.Context` that stands for a run, empty where not recorded."""
    return _first(_properties(message), "namespace")


def event_names(message: Any) -> tuple[str, ...]:
    """The names under which an `ml_metadata.Event` joins its artifact: its path's keys.

    The store keeps one event for an execution that reads an artifact twice, so there may be several.
    """
    return tuple(step.key for step in message.path.steps if step.HasField("key"))


def event_name(message: Any) -> str:
    """All names of an event as one text, for an edge."""
    return ", ".join(event_names(message))


def _properties(message: Any) -> dict[str, Value]:
    return {**from_properties(message.properties), **from_properties(message.custom_properties)}


def _values(properties: Mapping[str, Value], side: str) -> dict[str, Value]:
    struct = properties.get(f"{side}s")
    values = dict(struct) if isinstance(struct, dict) else {}
    prefix = f"{side}:"
    values.update((name[len(prefix) :], v) for name, v in properties.items() if name.startswith(prefix))
    return dict(sorted(values.items()))


def _first(properties: Mapping[str, Value], *names: str) -> str:
    return next((str(value) for name in names if (value := properties.get(name)) not in (None, "")), "")


def _list(properties: Mapping[str, Value], name: str) -> tuple[str, ...]:
    return tuple(part for part in _first(properties, name).split(",") if part)


def _number(value: Value) -> int | None:
    """A whole number, also from text or a float; None for anything else."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None
