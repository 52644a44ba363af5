"""The part of Argo's executor: fetches inputs, collects outputs, writes the WorkflowTaskResult.

The object is created when the step starts, labelled incomplete; its outputs are merged in when the
program has ended, and then the label says that they are complete. The order is Argo's (4.1), and what
watches these objects may rely on it.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memopod.kube import TASK_RESULTS, Client, Conflict
from memopod.sandbox.kubelet.buckets import ArtifactError, Buckets
from memopod.sandbox.kubelet.container import Folder
from memopod.sandbox.pipelines import as_text
from memopod.sandbox.pipelines.placeholders import EXECUTOR_OUTPUT
from memopod.steps import Step, names
from memopod.steps.locations import kind_of

_LONGEST_VALUE = 256 * 1024
"""Bytes of one output parameter: all of a step's must fit into one object of the API server."""


class OutputError(ValueError):
    """A declared output is missing or cannot be read. The message names it, and not its value."""


class Executor:
    """Works for one step, in its folder."""

    def __init__(self, client: Client, buckets: Buckets, step: Step, folder: Folder) -> None:
        self._client = client
        self._buckets = buckets
        self._step = step
        self._folder = folder
        self._template = step.template or {}

    async def begin(self) -> None:
        """Create the WorkflowTaskResult, incomplete; one that exists already is left as it is."""
        step = self._step
        body = {
            "apiVersion": TASK_RESULTS.api_version,
            "kind": TASK_RESULTS.kind,
            "metadata": {
                "name": step.node_id,
                "namespace": step.namespace,
                "labels": {names.ARGO_WORKFLOW: step.workflow, names.ARGO_OUTPUTS_COMPLETED: "false"},
                "ownerReferences": [
                    {
                        "apiVersion": "argoproj.io/v1alpha1",
                        "kind": "Workflow",
                        "name": step.workflow,
                        "uid": step.workflow_uid,
                    }
                ],
            },
        }
        try:
            await self._client.create(TASK_RESULTS, body, namespace=step.namespace)
        except Conflict:
            # As Argo's executor: a Pod made anew finds its predecessor's object and goes on with it.
            return

    async def fetch_inputs(self) -> None:
        """Copy the input artifacts to their paths. Raises ArtifactError."""
        for artifact in (self._template.get("inputs") or {}).get("artifacts") or ():
            location = self._buckets.place(artifact, self._template.get("archiveLocation"))
            await self._buckets.fetch(location, self._folder.local(artifact["path"]))

    async def collect(self) -> dict[str, Any]:
        """Read the output parameters and keep the output artifacts.

        Returns the `outputs` of a WorkflowTaskResult. Raises OutputError for one that is missing.
        """
        declared = self._template.get("outputs") or {}
        outputs: dict[str, Any] = {}
        if declared.get("parameters"):
            written = await asyncio.to_thread(self._written_parameters)
            outputs["parameters"] = [
                {**p, "value": await asyncio.to_thread(self._parameter, p, written)}
                for p in declared["parameters"]
            ]
        if declared.get("artifacts"):
            outputs["artifacts"] = [await self._artifact(a) for a in declared["artifacts"]]
        return outputs

    async def report(self, outputs: Mapping[str, Any]) -> None:
        """Merge the outputs into the WorkflowTaskResult, then say that they are complete."""
        name, namespace = self._step.node_id, self._step.namespace
        if outputs:
            await self._client.patch(TASK_RESULTS, name, {"outputs": outputs}, namespace=namespace)
        label = {"metadata": {"labels": {names.ARGO_OUTPUTS_COMPLETED: "true"}}}
        await self._client.patch(TASK_RESULTS, name, label, namespace=namespace)

    def _written_parameters(self) -> Mapping[str, Any]:
        """Output parameters of a Python component of the SDK, which writes all into one file.

        In Kubeflow v2 its launcher reads this file; nobody else would.
        """
        path = self._folder.local(EXECUTOR_OUTPUT)
        if not path.is_file():
            return {}
        try:
            written = json.loads(_read(path)).get("parameterValues") or {}
        except (ValueError, AttributeError) as error:
            raise OutputError("the executor output is not a JSON object") from error
        return written if isinstance(written, dict) else {}

    def _parameter(self, parameter: Mapping[str, Any], written: Mapping[str, Any]) -> str:
        name = parameter["name"]
        path = self._folder.local(parameter["valueFrom"]["path"])
        if path.is_file():
            # One newline at the end is cut off, as Argo's executor does.
            return _read(path).removesuffix("\n")
        if name in written:
            return as_text(written[name])
        raise OutputError(
            f"the step did not write its output parameter {name!r} ({parameter['valueFrom']['path']})"
        )

    async def _artifact(self, artifact: Mapping[str, Any]) -> dict[str, Any]:
        name = artifact["name"]
        source = self._folder.local(artifact["path"])
        if not source.exists():
            raise OutputError(f"the step did not write its output artifact {name!r} ({artifact['path']})")
        reported = dict(artifact)
        if kind_of(artifact) is None:
            reported["s3"] = {"key": f"{self._archive_key()}/{Path(artifact['path']).name}"}
        try:
            location = self._buckets.place(reported, self._template.get("archiveLocation"))
            await self._buckets.keep(source, location)
        except (ArtifactError, OSError) as error:
            raise OutputError(f"the output artifact {name!r} cannot be kept: {error}") from error
        return reported

    def _archive_key(self) -> str:
        return str(((self._template.get("archiveLocation") or {}).get("s3") or {}).get("key", ""))


def _read(path: Path) -> str:
    size = path.stat().st_size
    if size > _LONGEST_VALUE:
        raise OutputError(f"{path.name} is {size} bytes long, and at most {_LONGEST_VALUE} can be reported")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise OutputError(f"{path.name} is not UTF-8 text") from error
