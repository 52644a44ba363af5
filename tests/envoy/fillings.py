"""What stores hold in the tests of the user interface's pages."""

import json
from pathlib import Path

from google.protobuf import json_format
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient
from memopod.steps import NotAStep, read_step
from memopod.steps.outputs import read_outputs
from metadata_writer import reader
from metadata_writer.recorder import Recorder
from metadata_writer.skipping import skip_reason

SAMPLES = Path(__file__).parent.parent / "samples"
STORE_SESSION = json.dumps({"Provider": "minio", "Params": {"fromEnv": "true"}})


async def record_samples(address, version):
    """Let the writer record every step of the recordings of one version of Argo; returns the runs' names."""
    runs = set()
    async with StoreClient(address) as client:
        recorder = Recorder(client)
        for path in sorted((SAMPLES / version).glob("*.pod.json")):
            pod = json.loads(path.read_text())
            try:
                step = read_step(pod)
            except NotAStep:
                continue
            if step.template is None or skip_reason(pod):
                continue
            final = path.with_name(path.name.split(".")[0] + ".workflow-final.json")
            node = json.loads(final.read_text())["status"]["nodes"][step.node_id]
            outputs = read_outputs(node.get("outputs") or {}, step.template.get("archiveLocation"))
            record = reader.read_pod(step, node=node, outputs=outputs)
            await recorder.record(record)
            runs.add(record.run.name)
    return runs


class KubeflowV2:
    """Writes a run as Kubeflow's v2 driver and launcher do, one RPC after the other."""

    def __init__(self, client, *, run, namespace, pipeline="demo"):
        self.client, self.run, self.namespace, self.pipeline = client, run, namespace, pipeline
        self.contexts = []
        self.root = None

    async def begin(self):
        """Pipeline, run, and the root DAG."""
        pipeline = await self._context("system.Pipeline", self.pipeline, {})
        run = await self._context(
            "system.PipelineRun",
            self.run,
            {
                "namespace": self.namespace,
                "resource_name": "run-resource",
                "pipeline_root": f"minio://mlpipeline/v2/{self.run}",
                "store_session_info": STORE_SESSION,
            },
        )
        self.contexts = [pipeline, run]
        link = service.PutParentContextsRequest()
        link.parent_contexts.add(child_id=run.id, parent_id=pipeline.id)
        await self.client.call("PutParentContexts", link)
        self.root = await self.execution(
            "system.DAGExecution", mlmd.Execution.COMPLETE, {"display_name": "", "task_name": ""},
            name=f"run/{self.run}",
        )  # fmt: skip
        return self

    async def task(self, name, *, outputs=(), inputs=(), cached_from=None):
        """A task and what it put out: (key, type, metadata) each. Returns its id and its artifacts'."""
        custom = {
            "display_name": name, "task_name": name, "parent_dag_id": self.root,
            "pod_name": f"{self.run}-{name}",
            "pod_uid": f"uid-{name}", "namespace": self.namespace, "image": "python:3.11",
            "inputs": {"rate": 0.5}, "outputs": {"loss": 0.25},
        }  # fmt: skip
        state = mlmd.Execution.COMPLETE
        if cached_from is not None:
            state = mlmd.Execution.CACHED
            custom |= {"cached_execution_id": str(cached_from), "cache_fingerprint": "f" * 64}
        pairs = [(self._event(mlmd.Event.INPUT, key), mlmd.Artifact(id=number)) for key, number in inputs]
        for key, kind, metadata in outputs:
            if isinstance(kind, int):  # a reused artifact
                pairs.append((self._event(mlmd.Event.OUTPUT, key), mlmd.Artifact(id=kind)))
                continue
            uri = f"minio://mlpipeline/v2/{self.run}/{name}/{key}"
            artifact = mlmd.Artifact(type_id=await self._type("Artifact", kind), uri=uri)
            artifact.state = mlmd.Artifact.LIVE
            _assign(artifact, {"display_name": key, "store_session_info": STORE_SESSION, **metadata})
            pairs.append((self._event(mlmd.Event.OUTPUT, key), artifact))
        return await self.execution("system.ContainerExecution", state, custom, pairs=pairs, whole=True)

    async def loop(self, name, count):
        """A ParallelFor of so many iterations; returns the ids of its DAG and of each iteration's."""
        custom = {
            "display_name": name,
            "task_name": name,
            "parent_dag_id": self.root,
            "iteration_count": count,
        }
        whole = await self.execution("system.DAGExecution", mlmd.Execution.COMPLETE, custom)
        found = [whole]
        for index in range(count):
            custom = {
                "display_name": name, "task_name": name, "parent_dag_id": whole, "iteration_index": index,
            }  # fmt: skip
            found.append(await self.execution("system.DAGExecution", mlmd.Execution.COMPLETE, custom))
        return found

    async def execution(self, kind, state, custom, *, name="", pairs=(), whole=False):
        execution = mlmd.Execution(type_id=await self._type("Execution", kind), last_known_state=state)
        if name:
            execution.name = name
        _assign(execution, custom)
        request = service.PutExecutionRequest(execution=execution, contexts=self.contexts)
        for event, artifact in pairs:
            if artifact.id:
                known = service.GetArtifactsByIDRequest(artifact_ids=[artifact.id])
                (artifact,) = (await self.client.call("GetArtifactsByID", known)).artifacts  # noqa: PLW2901
            request.artifact_event_pairs.add(event=event, artifact=artifact)
        answer = await self.client.call("PutExecution", request)
        return (answer.execution_id, list(answer.artifact_ids)) if whole else answer.execution_id

    async def _context(self, kind, name, custom):
        context = mlmd.Context(type_id=await self._type("Context", kind), name=name)
        _assign(context, custom)
        known = service.GetContextByTypeAndNameRequest(type_name=kind, context_name=name)
        answer = await self.client.call("GetContextByTypeAndName", known)
        if not answer.HasField("context"):
            await self.client.call("PutContexts", service.PutContextsRequest(contexts=[context]))
            answer = await self.client.call("GetContextByTypeAndName", known)
        return answer.context

    async def _type(self, kind, name):
        request = getattr(service, f"Put{kind}TypeRequest")()
        getattr(request, f"{kind.lower()}_type").name = name
        return (await self.client.call(f"Put{kind}Type", request)).type_id

    @staticmethod
    def _event(kind, key):
        event = mlmd.Event(type=kind)
        event.path.steps.add(key=key)
        return event


def _assign(node, custom):
    for name, value in custom.items():
        target = node.custom_properties[name]
        if isinstance(value, dict):
            json_format.ParseDict(value, target.struct_value)
        elif isinstance(value, int):
            target.int_value = value
        elif isinstance(value, float):
            target.double_value = value
        else:
            target.string_value = value


async def fill_v2(address, *, run="5f0c6a1e-run-1", namespace="team-a"):
    """A run of three tasks and one that reused the first; returns the ids by name."""
    async with StoreClient(address) as client:
        kubeflow = await KubeflowV2(client, run=run, namespace=namespace).begin()
        train, (model, logs) = await kubeflow.task(
            "train",
            outputs=[("model", "system.Model", {"framework": "x"}), ("executor-logs", "system.Artifact", {})],
        )
        confidence = {"list": [{"confidenceThreshold": 0.5, "recall": 1.0, "falsePositiveRate": 0.0}]}
        _, (_, metrics, curve, page) = await kubeflow.task(
            "evaluate",
            inputs=[("model", model)],
            outputs=[
                ("metrics", "system.Metrics", {"accuracy": 0.75}),
                ("curve", "system.ClassificationMetrics", {"confidenceMetrics": confidence}),
                ("page", "system.HTML", {}),
            ],
        )
        matrix = {"struct": {"rows": [{"row": [3, 1]}], "annotationSpecs": [{"displayName": "cat"}]}}
        _, tfx = await kubeflow.task(
            "validate",
            outputs=[
                ("matrix", "system.ClassificationMetrics", {"confusionMatrix": matrix}),
                ("notes", "system.Markdown", {}),
                ("statistics", "ExampleStatistics", {"split_names": '["train", "eval"]'}),
                ("schema", "Schema", {}),
                ("anomalies", "ExampleAnomalies", {"split_names": '["eval"]'}),
                ("evaluation", "ModelEvaluation", {}),
            ],
        )
        drawn = ("matrix", "notes", "statistics", "schema", "anomalies", "evaluation")
        loop = await kubeflow.loop("each", 2)
        again, _ = await kubeflow.task("again", outputs=[("model", model, {})], cached_from=train)
        return {
            "run": run, "root": kubeflow.root, "train": train, "again": again, "model": model, "logs": logs,
            "metrics": metrics, "curve": curve, "page": page, "loop": loop,
            **dict(zip(drawn, tfx, strict=True)),
        }  # fmt: skip
