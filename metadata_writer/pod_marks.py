"""What Kubeflow's writer leaves on a Pod once its step is recorded, in the same JSON shapes. Pure.

Kubeflow's own services and users' scripts read it: the ids of the execution and of the run's context, and
the artifacts as lists of `{"id", "name", "uri"}`, of outputs with their `"type"` too.
"""

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from memopod.steps import names
from metadata_writer.graph import Ids
from metadata_writer.records import StepRecord

_KFP: Final = "pipelines.kubeflow.org/"
CONTEXT: Final = f"{_KFP}metadata_context_id"
INPUTS: Final = f"{_KFP}metadata_input_artifact_ids"
OUTPUTS: Final = f"{_KFP}metadata_output_artifact_ids"


class Marking(Enum):
    """Which Pods are marked; `AUTO` those on which Kubeflow has left a label or annotation of its own."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def marks(
    pod: Mapping[str, Any], record: StepRecord, ids: Ids, context_id: int, marking: Marking
) -> dict[str, Any] | None:
    """The merge patch that marks a Pod; None where it is not to be marked, or is already."""
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    kubeflows = any(name.startswith(_KFP) for name in (*labels, *annotations))
    if marking is Marking.OFF or (marking is Marking.AUTO and not kubeflows):
        return None
    # Kubeflow's cache server left the ids of the run that it reused.
    if labels.get(names.KFP_REUSED) == "true" or not record.state.finished:
        return None
    new_labels = {
        names.KFP_EXECUTION_ID: str(ids.execution),
        CONTEXT: str(context_id),
        names.KFP_WRITTEN: "true",
    }
    new_annotations = {INPUTS: _inputs(record, ids), OUTPUTS: _outputs(record, ids)}
    if new_labels.items() <= labels.items() and new_annotations.items() <= annotations.items():
        return None
    return {"metadata": {"labels": new_labels, "annotations": new_annotations}}


def _inputs(record: StepRecord, ids: Ids) -> str:
    found = [
        {"id": ids.inputs[item.name], "name": item.name, "uri": item.uri}
        for item in record.inputs
        if item.name in ids.inputs
    ]
    return json.dumps(found)


def _outputs(record: StepRecord, ids: Ids) -> str:
    found = [
        {"id": ids.outputs[item.name], "name": item.name, "uri": item.uri, "type": item.type_name}
        for item in record.outputs
        if item.name in ids.outputs
    ]
    return json.dumps(found)
