"""One step of an Argo workflow, read from its Pod as Argo 3.4 - 4.1 builds it.

Argo serialises the step's template into the environment variable `ARGO_TEMPLATE`. Which container
carries it depends on the version: every one (3.2 - 3.5), the init containers (3.6 and later),
`supervisor` or, for resource templates, `main` (4.1 without init containers). Versions before 3.2
used an annotation. A template over 131,072 bytes is in a ConfigMap named after the Pod, and the
variable's value is `offloaded` (3.7 and later).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from memopod.steps import names

Json = Any
"""A decoded JSON value."""
Decoder = Callable[[str], Json]
"""Turns JSON text into a value; raises ValueError for text that is not JSON."""


class NotAStep(ValueError):
    """The Pod is not the Pod of one step of a workflow. `reason` is a slug for people and metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Run(Protocol):
    """By what names a Pod and its Workflow tell one run of a step from another."""

    @property
    def namespace(self) -> str: ...  # noqa: D102
    @property
    def pod_name(self) -> str: ...  # noqa: D102
    @property
    def workflow(self) -> str: ...  # noqa: D102
    @property
    def workflow_uid(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a Pod says about the step that it runs.

    `pod` is the Pod's JSON, whole; `template` Argo's template object, or None while it is offloaded.
    `pod_uid` is empty during admission, when the API server has not given one yet.
    """

    namespace: str
    pod_name: str
    pod_uid: str
    workflow: str
    workflow_uid: str
    node_id: str
    node_name: str
    template: Mapping[str, Json] | None
    pod: Mapping[str, Json]

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels of the Pod."""
        return self.pod["metadata"].get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        """Annotations of the Pod."""
        return self.pod["metadata"].get("annotations") or {}

    @property
    def template_name(self) -> str:
        """Name of the template, empty while it is offloaded or where it has none."""
        return str((self.template or {}).get("name") or "")

    @property
    def execution(self) -> str:
        """Identity of the step's execution, stable across Pods: `<Workflow UID>/<node id>`.

        A retried step is a node of its own for each attempt; a Pod that Argo makes anew after
        somebody deleted it has the same node.
        """
        return f"{self.workflow_uid}/{self.node_id}"

    @property
    def reused(self) -> bool:
        """Whether this Pod has the outputs of an earlier run, and did not run the step itself."""
        return self.labels.get(names.STEP_LABEL) in (names.REUSED, names.PLACEHOLDER)

    @cached_property
    def wants_result(self) -> bool:
        """Whether Argo expects `outputs.result` (standard output) because something refers to it."""
        for container in containers(self.pod):
            for variable in container.get("env") or ():
                if variable.get("name") == names.ENV_INCLUDE_RESULT and variable.get("value") == "true":
                    return True
        return False


def containers(pod: Mapping[str, Json]) -> Iterator[Mapping[str, Json]]:
    """All containers of a Pod, init containers first."""
    spec = pod["spec"]
    yield from spec.get("initContainers") or ()
    yield from spec.get("containers") or ()


def main_container(pod: Mapping[str, Json]) -> Mapping[str, Json] | None:
    """The container that runs the step's own program, by Argo's convention named `main`."""
    return next((c for c in pod["spec"].get("containers") or () if c.get("name") == "main"), None)


def environment(container: Mapping[str, Json], name: str) -> str | None:
    """Literal value of an environment variable of a container, None when absent.

    Of a variable that is there twice the last one counts, as for the kubelet.
    """
    for variable in reversed(container.get("env") or ()):
        if variable.get("name") == name:
            return str(value) if (value := variable.get("value")) is not None else None
    return None


def owner_workflow(pod: Mapping[str, Json]) -> tuple[str, str] | None:
    """Name and UID of the Workflow that owns the Pod."""
    for owner in pod["metadata"].get("ownerReferences") or ():
        if owner.get("kind") == "Workflow" and str(owner.get("apiVersion", "")).startswith("argoproj.io/"):
            return str(owner.get("name", "")), str(owner.get("uid", ""))
    return None


def has_template_everywhere(pod: Mapping[str, Json]) -> bool:
    """Whether the Pod is of Argo 3.5 or earlier: the template is on every container, `main` included.

    (An init-less Pod of 4.1 may have it on `main`, and has no container `init`.)
    """
    carriers = {c.get("name") for c in containers(pod) if environment(c, names.ENV_TEMPLATE) is not None}
    return {"init", "main"} <= carriers


def template_text(pod: Mapping[str, Json]) -> str | None:
    """The template's JSON text (or `offloaded`) from wherever this Argo version keeps it."""
    for container in containers(pod):
        text = environment(container, names.ENV_TEMPLATE)
        if text:
            return text
    annotations: Mapping[str, str] = pod["metadata"].get("annotations") or {}
    return annotations.get(names.ARGO_TEMPLATE_ANNOTATION)


def decode_template(text: str, decode: Decoder) -> Mapping[str, Json]:
    """Parse a template's JSON text.

    Raises NotAStep when the text is not a JSON object.
    """
    try:
        template = decode(text)
    except (ValueError, RecursionError) as error:
        raise NotAStep("template-unreadable", "ARGO_TEMPLATE is not valid JSON") from error
    if not isinstance(template, dict):
        raise NotAStep("template-unreadable", "ARGO_TEMPLATE is not a JSON object")
    if not _has_shape(template):
        raise NotAStep("template-unreadable", "ARGO_TEMPLATE does not have a template's shape")
    return template


def _has_shape(template: Mapping[str, Json]) -> bool:
    """Whether what memopod reads of a template is of the kinds that Argo's API gives to it."""
    objects = [template.get(f) for f in ("container", "script", "containerSet", "archiveLocation")]
    lists = [template.get("initContainers"), template.get("sidecars")]
    for field in ("inputs", "outputs"):
        section = template.get(field)
        objects.append(section)
        if isinstance(section, dict):
            lists += [section.get("parameters"), section.get("artifacts")]
    if isinstance(template.get("containerSet"), dict):
        lists.append(template["containerSet"].get("containers"))
    if not all(o is None or isinstance(o, dict) for o in objects):
        return False
    if not all(
        items is None or (isinstance(items, list) and all(isinstance(i, dict) for i in items))
        for items in lists
    ):
        return False
    archive = template.get("archiveLocation") or {}
    artifacts = [a for f in ("inputs", "outputs") for a in (template.get(f) or {}).get("artifacts") or ()]
    places = [holder.get(kind) for holder in [archive, *artifacts] for kind in ("s3", "gcs", "oss", "azure")]
    return all(place is None or isinstance(place, dict) for place in places)


def read_step(pod: Mapping[str, Json], *, namespace: str = "", decode: Decoder = json.loads) -> Step:
    """Read the step that a Pod runs.

    `namespace` stands in where the Pod names none, as in an AdmissionReview; `decode` may be a
    faster JSON decoder.
    Raises NotAStep for a Pod without an owning Workflow, node id or template (the agent Pod of
    http templates, for one).
    """
    metadata = pod["metadata"]
    owner = owner_workflow(pod)
    if owner is None:
        raise NotAStep("no-workflow", "the Pod is not owned by a Workflow")
    annotations = metadata.get("annotations") or {}
    node_id = annotations.get(names.ARGO_NODE_ID) or next(
        (v for c in containers(pod) if (v := environment(c, "ARGO_NODE_ID"))), None
    )
    if not node_id:
        raise NotAStep("no-node", "the Pod names no node of its Workflow")
    text = template_text(pod)
    if not text:
        raise NotAStep("no-template", "no container carries ARGO_TEMPLATE")
    return Step(
        namespace=metadata.get("namespace") or namespace,
        pod_name=metadata.get("name", ""),
        pod_uid=metadata.get("uid", ""),
        workflow=owner[0],
        workflow_uid=owner[1],
        node_id=node_id,
        node_name=annotations.get(names.ARGO_NODE_NAME, ""),
        template=None if text == names.OFFLOADED else decode_template(text, decode),
        pod=pod,
    )
