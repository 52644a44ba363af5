"""A writer that works as Kubeflow's does, for comparison only: one Pod after another, each with about ten
unary calls to the store and two patches of the Pod.

Written from the description of that way of working; it looks contexts up by name instead of listing them
all, which is to its advantage. `python -m benchmarks.one_by_one KUBECONFIG STORE`.
"""

import http.client
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

RUN = {"pipeline_name": mlmd.STRING, "run_id": mlmd.STRING}


class OneByOne:
    def __init__(self, server, store):
        address = urlsplit(server)
        self._watching = http.client.HTTPConnection(address.hostname, address.port)
        self._patching = http.client.HTTPConnection(address.hostname, address.port)
        self._channel = grpc.insecure_channel(store)
        self._contexts = {}
        self._recorded = set()

    def call(self, rpc, request, answer):
        path = f"/ml_metadata.MetadataStoreService/{rpc}"
        return self._channel.unary_unary(path, lambda r: r.SerializeToString(), answer.FromString)(request)

    def run(self):
        path = "/api/v1/pods?watch=true&resourceVersion=1&timeoutSeconds=3600"
        self._watching.request("GET", path, headers={"Accept": "application/json"})
        stream = self._watching.getresponse()
        print("ready", flush=True)
        for line in stream:
            event = json.loads(line)
            pod = event["object"]
            if event["type"] != "BOOKMARK" and pod["metadata"]["name"] not in self._recorded:
                self._recorded.add(pod["metadata"]["name"])
                self.record(pod)

    def record(self, pod):
        labels = pod["metadata"]["labels"]
        run = labels["workflows.argoproj.io/workflow"]
        template = self.template(pod)
        context = self._contexts.get(run) or self.context(run)
        execution_type = self.execution_type(f"components.{template.get('name')}")
        execution = mlmd.Execution(type_id=execution_type, last_known_state=mlmd.Execution.COMPLETE)
        execution.external_id = pod["metadata"]["uid"]
        execution.properties["run_id"].string_value = run
        execution.custom_properties["kfp_pod_name"].string_value = pod["metadata"]["name"]
        request = service.PutExecutionsRequest(executions=[execution])
        (execution_id,) = self.call("PutExecutions", request, service.PutExecutionsResponse).execution_ids
        self.relate(context, execution_id=execution_id)
        for artifact in self.artifacts(template, "inputs"):
            request = service.GetArtifactsByURIRequest(uris=[artifact])
            found = self.call("GetArtifactsByURI", request, service.GetArtifactsByURIResponse).artifacts
            if found:
                self.event(execution_id, found[-1].id, mlmd.Event.INPUT)
        self.patch(pod, {"labels": {"metadata_execution_id": str(execution_id)}})
        for artifact in self.artifacts(template, "outputs"):
            self.output(context, execution_id, artifact)
        self.patch(pod, {"labels": {"metadata_written": "true"}})

    def output(self, context, execution_id, uri):
        request = service.PutArtifactTypeRequest(artifact_type=mlmd.ArtifactType(name="NoType"))
        type_id = self.call("PutArtifactType", request, service.PutArtifactTypeResponse).type_id
        request = service.PutArtifactsRequest(artifacts=[mlmd.Artifact(type_id=type_id, uri=uri)])
        (artifact_id,) = self.call("PutArtifacts", request, service.PutArtifactsResponse).artifact_ids
        self.event(execution_id, artifact_id, mlmd.Event.OUTPUT)
        self.relate(context, artifact_id=artifact_id)

    def context(self, run):
        request = service.PutContextTypeRequest(context_type=mlmd.ContextType(name="KfpRun", properties=RUN))
        type_id = self.call("PutContextType", request, service.PutContextTypeResponse).type_id
        request = service.GetContextByTypeAndNameRequest(type_name="KfpRun", context_name=run)
        answer = self.call("GetContextByTypeAndName", request, service.GetContextByTypeAndNameResponse)
        if not answer.HasField("context"):
            request = service.PutContextsRequest(contexts=[mlmd.Context(type_id=type_id, name=run)])
            ids = self.call("PutContexts", request, service.PutContextsResponse).context_ids
            self._contexts[run] = ids[0]
        else:
            self._contexts[run] = answer.context.id
        return self._contexts[run]

    def execution_type(self, name):
        properties = {**RUN, "component_id": mlmd.STRING}
        request = service.PutExecutionTypeRequest(
            execution_type=mlmd.ExecutionType(name=name, properties=properties)
        )
        return self.call("PutExecutionType", request, service.PutExecutionTypeResponse).type_id

    def event(self, execution_id, artifact_id, kind):
        event = mlmd.Event(execution_id=execution_id, artifact_id=artifact_id, type=kind)
        self.call("PutEvents", service.PutEventsRequest(events=[event]), service.PutEventsResponse)

    def relate(self, context, *, execution_id=None, artifact_id=None):
        request = service.PutAttributionsAndAssociationsRequest()
        if execution_id is not None:
            request.associations.add(context_id=context, execution_id=execution_id)
        else:
            request.attributions.add(context_id=context, artifact_id=artifact_id)
        answer = service.PutAttributionsAndAssociationsResponse
        self.call("PutAttributionsAndAssociations", request, answer)

    def patch(self, pod, metadata):
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        headers = {"Content-Type": "application/merge-patch+json"}
        self._patching.request("PATCH", path, json.dumps({"metadata": metadata}), headers)
        self._patching.getresponse().read()

    @staticmethod
    def template(pod):
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            for variable in container.get("env", ()):
                if variable["name"] == "ARGO_TEMPLATE":
                    return json.loads(variable["value"])
        return {}

    @staticmethod
    def artifacts(template, section):
        found = (template.get(section) or {}).get("artifacts") or ()
        return [f"minio://mlpipeline/{a['s3']['key']}" for a in found if (a.get("s3") or {}).get("key")]


if __name__ == "__main__":
    config = json.loads(Path(sys.argv[1]).read_text())
    OneByOne(config["clusters"][0]["cluster"]["server"], sys.argv[2]).run()
