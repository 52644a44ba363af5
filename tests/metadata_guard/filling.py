"""What the guarded store of the tests holds: runs of two namespaces, and what belongs to both or to none."""

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient
from metadata_writer.recorder import Recorder
from metadata_writer.records import Input, Output, Run, State, StepRecord

TEAMS = ("team-a", "team-b")


def step(run, name, **fields):
    return StepRecord(
        external_id=f"{run.workflow_uid}/{name}",
        run=run,
        type_name=f"components.{name}",
        component_id=name,
        state=State.COMPLETE,
        custom={"namespace": run.namespace, "display_name": name},
        **fields,
    )


def uri(team, name="model"):
    return f"minio://{team}/{name}"


async def record_runs(address):
    """Two steps in each namespace, and one that reads what the other namespace made."""
    async with StoreClient(address) as client:
        recorder = Recorder(client)
        for team in TEAMS:
            run = Run(f"written-{team}", team, f"uid-{team}")
            made = Output("model", "system.Model", uri(team), {"name": "model"})
            await recorder.record(step(run, "make", outputs=(made,)))
            await recorder.record(step(run, "use", inputs=(Input("model", uri(team)),)))
        borrowing = Run("borrows", "team-b", "uid-borrows")
        await recorder.record(step(borrowing, "borrow", inputs=(Input("model", uri("team-a")),)))


async def intrude(address):
    """A step of team-b in the context of team-a's run, as Kubeflow's writer does for runs of one name."""
    async with StoreClient(address) as client:
        asked = service.GetContextByTypeAndNameRequest(type_name="KfpRun", context_name="written-team-a")
        run = (await client.call("GetContextByTypeAndName", asked)).context
        types = {}
        for kind in ("Execution", "Artifact"):
            request = getattr(service, f"Put{kind}TypeRequest")()
            getattr(request, f"{kind.lower()}_type").name = "intruder"
            types[kind] = (await client.call(f"Put{kind}Type", request)).type_id
        execution = mlmd.Execution(type_id=types["Execution"], name="intruder")
        execution.custom_properties["namespace"].string_value = "team-b"
        request = service.PutExecutionRequest(execution=execution, contexts=[run])
        made = mlmd.Artifact(type_id=types["Artifact"], uri=uri("team-b", "intruder"))
        request.artifact_event_pairs.add(artifact=made, event=mlmd.Event(type=mlmd.Event.OUTPUT))
        await client.call("PutExecution", request)


async def make_together(address):
    """An artifact that executions of both namespaces put out."""
    async with StoreClient(address) as client:
        request = service.PutArtifactTypeRequest(artifact_type=mlmd.ArtifactType(name="shared"))
        artifact = mlmd.Artifact(
            type_id=(await client.call("PutArtifactType", request)).type_id, name="shared"
        )
        request = service.PutExecutionTypeRequest(execution_type=mlmd.ExecutionType(name="maker"))
        type_id = (await client.call("PutExecutionType", request)).type_id
        for team in TEAMS:
            execution = mlmd.Execution(type_id=type_id, name=f"maker-{team}")
            execution.custom_properties["namespace"].string_value = team
            request = service.PutExecutionRequest(execution=execution)
            request.artifact_event_pairs.add(artifact=artifact, event=mlmd.Event(type=mlmd.Event.OUTPUT))
            artifact.id = (await client.call("PutExecution", request)).artifact_ids[0]


async def add_strays(address):
    """Nodes of which nobody says whose they are."""
    async with StoreClient(address) as client:
        for kind in ("Artifact", "Execution", "Context"):
            request = getattr(service, f"Put{kind}TypeRequest")()
            getattr(request, f"{kind.lower()}_type").name = "stray"
            type_id = (await client.call(f"Put{kind}Type", request)).type_id
            node = getattr(mlmd, kind)(type_id=type_id, name="stray", external_id=f"stray-{kind}")
            put = getattr(service, f"Put{kind}sRequest")(**{f"{kind.lower()}s": [node]})
            await client.call(f"Put{kind}s", put)
