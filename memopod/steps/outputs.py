"""What a step put out: read from what Argo's executor reported, and written again for a reused step.

A WorkflowTaskResult's `outputs` and a node's `status.nodes[id].outputs` have one shape (Argo 3.4 -
4.1): `{"parameters": [{name, value, valueFrom}], "artifacts": [{name, path, s3: {key}, ...}],
"result": "...", "exitCode": "0"}`.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memopod.steps import names
from memopod.steps.argo import Step, has_template_everywhere
from memopod.steps.locations import KINDS, Location, is_key_only, kind_of, resolve

_LARGEST_NODES = 64 * 1024 * 1024
"""Bytes. Packed nodes have to fit into an object of at most 1.5 MiB; twenty times that is generous."""


_MAIN_LOGS = "main-logs"
"""Name that Argo gives to the archived log of `main`."""


class OutputsMismatch(ValueError):
    """Stored outputs are not those that the template declares. The message names no values."""


class NodesOffloaded(ValueError):
    """The Workflow's nodes are in Argo's own database, which memopod does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputArtifact:
    """One artifact that a step put out.

    `location` is where it is; `reported` the artifact as Argo's executor reported it. `size`
    (bytes), `etag` and `digest` (`<algorithm>:<hex>`) are what the object store said when it was
    recorded, None where it was not asked or does not tell.
    """

    name: str
    location: Location
    reported: Mapping[str, Any]
    size: int | None = None
    etag: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """All that a step put out; `result` is the standard output that a script template returns.

    `logs` is the URI of the log of `main`, where Argo archived it.
    """

    parameters: Mapping[str, str]
    artifacts: tuple[OutputArtifact, ...] = ()
    result: str | None = None
    logs: str | None = None

    def artifact(self, name: str) -> OutputArtifact | None:
        """The artifact of that name."""
        return next((a for a in self.artifacts if a.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """As stored with an entry: `{"parameters": {name: value}, "result": text or null,
        "logs": URI or null, "artifacts": [{"name", "kind", "endpoint", "bucket", "key", "reported", "size",
        "etag", "digest"}]}`.
        """
        return {
            "parameters": dict(self.parameters),
            "result": self.result,
            "logs": self.logs,
            "artifacts": [
                {
                    "name": a.name,
                    "kind": a.location.kind,
                    "endpoint": a.location.endpoint,
                    "bucket": a.location.bucket,
                    "key": a.location.key,
                    "reported": dict(a.reported),
                    "size": a.size,
                    "etag": a.etag,
                    "digest": a.digest,
                }
                for a in self.artifacts
            ],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Outputs":
        """The inverse of `to_json`. Raises KeyError for anything else."""
        return cls(
            parameters=stored["parameters"],
            result=stored["result"],
            logs=stored.get("logs"),
            artifacts=tuple(
                OutputArtifact(
                    name=a["name"],
                    location=Location(a["kind"], a["endpoint"], a["bucket"], a["key"]),
                    reported=a["reported"],
                    size=a["size"],
                    etag=a["etag"],
                    digest=a["digest"],
                )
                for a in stored["artifacts"]
            ),
        )


def is_complete(task_result: Mapping[str, Any]) -> bool:
    """Whether the executor has said that all outputs are in.

    Argo 3.4 creates the object once, finished, without the label; later versions label it "false"
    first and "true" at the end.
    """
    labels = task_result["metadata"].get("labels") or {}
    return bool(labels.get(names.ARGO_OUTPUTS_COMPLETED, "true") == "true")


def is_ours(task_result: Mapping[str, Any]) -> bool:
    """Whether memopod wrote this WorkflowTaskResult, to finish a reused step."""
    return names.ENTRY in (task_result["metadata"].get("labels") or {})


def is_of(task_result: Mapping[str, Any], workflow_uid: str) -> bool:
    """Whether a WorkflowTaskResult belongs to this very Workflow. One that no Workflow owns may (Argo 3.4).

    Its name follows from that of the Workflow: one made again under the same name meets the results of the
    one before, until they are collected.
    """
    owners = task_result["metadata"].get("ownerReferences") or ()
    uids = [owner.get("uid") for owner in owners if owner.get("kind") == "Workflow"]
    return not uids or workflow_uid in uids


def read_outputs(reported: Mapping[str, Any], archive: Mapping[str, Any] | None) -> Outputs:
    """Read the `outputs` of a WorkflowTaskResult or of a node, given the template's `archiveLocation`.

    Parameters without a value are left out, and so are artifacts that no object store holds.
    """
    artifacts = []
    for artifact in reported.get("artifacts") or ():
        location = resolve(artifact, archive)
        if location is not None:
            artifacts.append(
                OutputArtifact(name=str(artifact.get("name", "")), location=location, reported=artifact)
            )
    parameters = {
        str(p["name"]): str(p["value"])
        for p in reported.get("parameters") or ()
        if p.get("value") is not None and p.get("name")
    }
    return Outputs(parameters=parameters, artifacts=tuple(artifacts), result=reported.get("result"))


def annotated_outputs(step: Step) -> Mapping[str, Any] | None:
    """What Argo's executor wrote into the Pod's annotation `workflows.argoproj.io/outputs` (before 3.4).

    None where there is none, where it is no JSON object, and for Pods of later versions, which do not use
    it: there a template's own metadata could have put it on the Pod.
    """
    old = names.ARGO_TEMPLATE_ANNOTATION in step.annotations or has_template_everywhere(step.pod)
    text = step.annotations.get(names.ARGO_OUTPUTS)
    if not old or text is None:
        return None
    try:
        reported = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return reported if isinstance(reported, dict) else None


def workflow_nodes(workflow: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nodes of a Workflow by id, unpacked where Argo compressed them (gzip, base64).

    Raises NodesOffloaded where Argo keeps them in a database of its own.
    """
    status = workflow.get("status") or {}
    if status.get("nodes"):
        nodes: Mapping[str, Any] = status["nodes"]
        return nodes
    if status.get("compressedNodes"):
        unpacked: Mapping[str, Any] = json.loads(_decompress(status["compressedNodes"]))
        return unpacked
    if status.get("offloadNodeStatusVersion"):
        raise NodesOffloaded("the Workflow's nodes are offloaded to Argo's database")
    return {}


def _decompress(text: str) -> bytes:
    """Base64 and gzip, but no more than Argo would ever have packed. Raises ValueError."""
    try:
        stream = zlib.decompressobj(wbits=31)
        data = stream.decompress(base64.b64decode(text), _LARGEST_NODES)
    except zlib.error as error:
        raise ValueError("compressedNodes: expected gzip in base64") from error
    if stream.unconsumed_tail:
        raise ValueError(f"compressedNodes: more than {_LARGEST_NODES} bytes when unpacked")
    return data


def declared(template: Mapping[str, Any], what: str) -> list[Mapping[str, Any]]:
    """Declared outputs of a template: `what` is `parameters` or `artifacts`."""
    return list((template.get("outputs") or {}).get(what) or ())


def select_declared(step: Step, outputs: Outputs) -> Outputs:
    """Keep what the template declares; of log artifacts (`main-logs`), which Argo adds, only `logs` stays.

    Raises OutputsMismatch if anything declared is missing, or something else was put out.
    """
    template = step.template or {}
    wanted = {str(p.get("name")) for p in declared(template, "parameters")}
    if set(outputs.parameters) != wanted:
        raise OutputsMismatch("output parameters are not those that the template declares")
    wanted_artifacts = {str(a.get("name")) for a in declared(template, "artifacts")}
    logs = {a.name for a in outputs.artifacts if a.name.endswith("-logs")} - wanted_artifacts
    kept = tuple(a for a in outputs.artifacts if a.name not in logs)
    if len(kept) != len(wanted_artifacts) or {a.name for a in kept} != wanted_artifacts:
        raise OutputsMismatch("output artifacts are not those that the template declares")
    if step.wants_result and outputs.result is None:
        raise OutputsMismatch("the step's result is expected, and there is none")
    log = outputs.artifact(_MAIN_LOGS) if _MAIN_LOGS in logs else None
    return replace(
        outputs, artifacts=kept, result=outputs.result if step.wants_result else None,
        logs=log.location.uri if log else outputs.logs,
    )  # fmt: skip


def fill_declared(step: Step, stored: Outputs) -> dict[str, Any]:
    """The current template's declared outputs, filled with stored values and locations.

    The result is what goes into a WorkflowTaskResult's `outputs`. Artifacts get `artifactGC: Never`:
    Argo deletes the outputs of a *node*, and these belong to the run that produced them.
    Raises OutputsMismatch unless stored and declared match one to one, or if a key-only location
    would point into another bucket or endpoint than the one it was stored with.
    """
    stored = select_declared(step, stored)
    template = step.template or {}
    filled: dict[str, Any] = {}
    parameters = [{**p, "value": stored.parameters[str(p["name"])]} for p in declared(template, "parameters")]
    if parameters:
        filled["parameters"] = parameters
    artifacts = [
        _fill_artifact(a, stored.artifact(str(a["name"])), template.get("archiveLocation"))
        for a in declared(template, "artifacts")
    ]
    if artifacts:
        filled["artifacts"] = artifacts
    if stored.result is not None:
        filled["result"] = stored.result
    return filled


def _fill_artifact(
    declaration: Mapping[str, Any], stored: OutputArtifact | None, archive: Mapping[str, Any] | None
) -> dict[str, Any]:
    if stored is None:
        raise OutputsMismatch("a declared artifact was not stored")
    kind = kind_of(stored.reported)
    if kind is None or kind_of(declaration) not in (None, kind):
        raise OutputsMismatch("a declared artifact has another kind of location than the stored one")
    if is_key_only(stored.reported) and resolve(stored.reported, archive) != stored.location:
        raise OutputsMismatch("the artifact repository is another than the stored artifact's")
    own = {k: v for k, v in declaration.items() if k not in KINDS}
    return {**own, kind: stored.reported[kind], "artifactGC": {"strategy": "Never"}}
