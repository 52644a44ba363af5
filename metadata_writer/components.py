"""The component that a step is an instance of, as Kubeflow Pipelines v1 describes it on the Pod.

The annotation `pipelines.kubeflow.org/component_spec` holds the component's JSON. A step without
one (a plain Argo template) is an instance of its template. Types of outputs can be given for it, too.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from memopod.steps import names
from metadata_writer.records import EXECUTION_TYPE_PREFIX, UNTYPED


@dataclass(frozen=True, slots=True)
class Component:
    """`version` is the name, followed by `@sha256=<digest of the specification>` where there is one."""

    name: str
    version: str
    output_types: Mapping[str, str]

    @property
    def type_name(self) -> str:
        """The MLMD type of the component's executions."""
        return EXECUTION_TYPE_PREFIX + self.version

    def output_type(self, output: str) -> str:
        """The declared type of an output, by its name in Argo."""
        return self.output_types.get(output, UNTYPED)


def read_component(name: str, annotations: Mapping[str, str]) -> Component:
    """The component of a step; `name` is its template's.

    A specification that is no JSON object counts as none.
    """
    own_types = {
        output: declared
        for output, declared in (_json_object(annotations.get(names.OUTPUT_TYPES) or "{}") or {}).items()
        if isinstance(declared, str) and declared
    }
    text = annotations.get(names.KFP_COMPONENT_SPEC)
    specification = _json_object(text) if text else None
    if text is None or specification is None:
        return Component(name, name, own_types)
    component = str(specification.get("name") or name)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Component(component, f"{component}@sha256={digest}", _output_types(specification) | own_types)


def read_pipeline(workflow: Mapping[str, Any]) -> str | None:
    """The pipeline that a Workflow is a run of: Kubeflow's, or the object that Argo made it from."""
    metadata = workflow.get("metadata") or {}
    labels = metadata.get("labels") or {}
    specification = _json_object((metadata.get("annotations") or {}).get(names.KFP_PIPELINE_SPEC) or "{}")
    template = ((workflow.get("spec") or {}).get("workflowTemplateRef") or {}).get("name")
    for name in (
        (specification or {}).get("name"),
        labels.get(names.ARGO_CRON_WORKFLOW),
        labels.get(names.ARGO_WORKFLOW_TEMPLATE),
        template,
    ):
        if isinstance(name, str) and name:
            return name
    return None


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(text)  # strict: a text that it accepts can be stored
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _output_types(specification: Mapping[str, Any]) -> dict[str, str]:
    types = {}
    for output in specification.get("outputs") or ():
        declared = output.get("type")
        if isinstance(declared, dict):  # {"GCSPath": {"data_type": "CSV"}}: the name and its details
            declared = next(iter(declared), None)
        if declared and output.get("name"):
            types[_argo_name(str(output["name"]))] = str(declared)
    return types


def _argo_name(name: str) -> str:
    """An output's name as Kubeflow's compiler writes it for Argo."""
    return re.sub("-+", "-", re.sub("[^-_0-9A-Za-z]+", "-", name)).strip("-")
