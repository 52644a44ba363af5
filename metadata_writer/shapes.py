"""What is decoded of the objects that are watched: a Pod is 20 KB of JSON, of which 3 KB are looked at.

Fields that are not here are passed over without being made into anything. Values that nobody checks are
`Any`; an object that does not fit is decoded in full, and whoever reads it finds out.
"""

from typing import Any, TypedDict

Names = dict[str, Any] | None


class MetadataShape(TypedDict, total=False):
    """Of any object."""

    name: str
    namespace: str
    uid: str
    resourceVersion: str
    deletionTimestamp: str
    finalizers: list[Any] | None
    labels: Names
    annotations: Names
    ownerReferences: list[Any] | None


class ContainerShape(TypedDict, total=False):
    """Of a Pod's containers, init containers too."""

    name: str
    image: str
    command: list[Any] | None
    env: list[Any] | None


class PodSpecShape(TypedDict, total=False):
    """Containers and node."""

    nodeName: str
    initContainers: list[ContainerShape] | None
    containers: list[ContainerShape] | None


class ContainerStatusShape(TypedDict, total=False):
    """How a container did."""

    name: str
    imageID: str
    state: Any


class PodStatusShape(TypedDict, total=False):
    """How a Pod did."""

    phase: str
    startTime: str | None
    containerStatuses: list[ContainerStatusShape] | None


class PodShape(TypedDict, total=False):
    """A Pod."""

    apiVersion: str
    kind: str
    metadata: MetadataShape
    spec: PodSpecShape
    status: PodStatusShape


class WorkflowSpecShape(TypedDict, total=False):
    """Templates."""

    templates: Any
    podMetadata: Any
    workflowTemplateRef: Any


class WorkflowStatusShape(TypedDict, total=False):
    """Nodes, in one of three ways."""

    phase: Any
    nodes: Any
    compressedNodes: Any
    offloadNodeStatusVersion: Any
    artifactRepositoryRef: Any
    storedWorkflowTemplateSpec: Any
    storedTemplates: Any


class WorkflowShape(TypedDict, total=False):
    """A Workflow."""

    apiVersion: str
    kind: str
    metadata: MetadataShape
    spec: WorkflowSpecShape
    status: WorkflowStatusShape


class ResultShape(TypedDict, total=False):
    """A WorkflowTaskResult."""

    apiVersion: str
    kind: str
    metadata: MetadataShape
    outputs: Any
