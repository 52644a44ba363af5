"""The graph that a store holds, in the shape of the truth."""

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import from_properties, list_all
from tests.chaos.truth import Graph


async def recorded(store):
    """Everything in the store behind a StoreClient; a node or edge that is there twice fails."""
    graph = Graph()
    executions = [e async for e in list_all(store, "GetExecutions", service.GetExecutionsRequest())]
    artifacts = [a async for a in list_all(store, "GetArtifacts", service.GetArtifactsRequest())]
    contexts = [c async for c in list_all(store, "GetContexts", service.GetContextsRequest())]
    names = {e.id: e.external_id for e in executions}
    for execution in executions:
        custom = from_properties(execution.custom_properties)
        assert execution.external_id not in graph.executions
        graph.executions[execution.external_id] = {
            "type": execution.type,
            "state": mlmd.Execution.State.Name(execution.last_known_state),
            "input:n": custom.get("input:n"),
            "output:o": custom.get("output:o"),
            "source": names.get(custom.get("cached_execution_id")),
            "unresolved": custom.get("unresolved_inputs"),
        }
    for artifact in artifacts:
        assert artifact.external_id not in graph.artifacts
        graph.artifacts[artifact.external_id] = {"type": artifact.type, "uri": artifact.uri}
    of_artifact = {a.id: a.external_id for a in artifacts}
    ids = list(names)
    for start in range(0, len(ids), 1000):
        request = service.GetEventsByExecutionIDsRequest(execution_ids=ids[start : start + 1000])
        for event in (await store.call("GetEventsByExecutionIDs", request)).events:
            for step in event.path.steps:
                kind = mlmd.Event.Type.Name(event.type)
                edge = (names[event.execution_id], kind, step.key, of_artifact[event.artifact_id])
                assert edge not in graph.edges
                graph.edges.add(edge)
    for context in contexts:
        request = service.GetExecutionsByContextRequest(context_id=context.id)
        async for execution in list_all(store, "GetExecutionsByContext", request):
            graph.edges.add((context.name, "execution", execution.external_id))
        request = service.GetArtifactsByContextRequest(context_id=context.id)
        async for artifact in list_all(store, "GetArtifactsByContext", request):
            graph.edges.add((context.name, "artifact", artifact.external_id))
    return graph
