"""What the real metadata writer records, asked through the lineage: the names on both sides agree."""

import pytest

from memopod.lineage import Relation, State, down, show, up
from memopod.mlmd import StoreClient
from metadata_writer.recorder import Recorder
from metadata_writer.records import Input, Output, Run, StepRecord
from metadata_writer.records import State as Recorded

URI = "minio://pipelines/written-1/model"


def step(run, name, state=Recorded.COMPLETE, *, custom=None, **fields):
    return StepRecord(
        external_id=f"{run.workflow_uid}/{name}",
        run=run,
        type_name=f"components.{name}",
        component_id=name,
        state=state,
        custom={
            "display_name": name,
            "kfp_pod_name": f"{run.name}-{name}",
            "started_at": 1_760_000_000_000,
            "finished_at": 1_760_000_002_500,
            **(custom or {}),
        },
        **fields,
    )


@pytest.fixture
async def written(own_store):
    async with StoreClient(own_store) as client:
        recorder = Recorder(client)
        first, second = (Run(f"written-{n}", "pipelines", f"uid-{n}") for n in (1, 2))
        model = Output(
            "model",
            "system.Model",
            URI,
            {"name": "model", "run_id": "written-1", "size": 3, "digest": "sha256:ab"},
        )
        values = {"input:rate": "0.1", "output:loss": "0.25"}
        await recorder.record(step(first, "make", outputs=(model,), custom=values))
        await recorder.record(
            step(
                second,
                "make",
                Recorded.CACHED,
                outputs=(model,),
                custom={**values, "reason": "hit"},
                source_execution="uid-1/make",
            )
        )
        lost = Input("lost", "minio://pipelines/nowhere")
        after = {"started_at": 1_760_000_003_000, "finished_at": 1_760_000_004_000}
        await recorder.record(step(second, "use", custom=after, inputs=(Input("model", URI), lost)))
        yield client


async def test_a_run_is_shown_as_it_was_written(written):
    report = await show(written, "written-2")
    make, use = report.steps
    assert report.namespace == "pipelines"
    assert (make.execution.state, make.execution.seconds, make.execution.reason) == (State.CACHED, 2.5, "hit")
    assert make.reused_from.title == "written-1/make"
    assert (make.execution.inputs, make.execution.outputs) == ({"rate": "0.1"}, {"loss": "0.25"})
    (model,) = use.inputs
    assert (model.artifact.uri, model.artifact.size, model.artifact.digest) == (URI, 3, "sha256:ab")
    assert (model.artifact.type, model.artifact.run) == ("system.Model", "written-1")
    assert use.execution.unresolved_inputs == ("lost",)


async def test_the_lineage_passes_from_the_user_to_the_run_that_made_the_artifact(written):
    graph = await up(written, "written-2/use")
    found = {(graph.nodes[edge.source].title, edge.relation) for edge in graph.edges}
    assert found == {
        ("model", Relation.USED),
        ("written-2/make", Relation.HANDED_ON),
        ("written-1/make", Relation.REUSED),
    }
    assert graph.notes[0].startswith("input lost of written-2/use")


async def test_the_user_depends_on_the_run_that_made_the_artifact(written):
    graph = await down(written, "written-1/make:model")
    assert [node.title for node in graph.nodes.values()] == ["model", "written-2/use"]
    assert "written-2/make" in {node.title for node in (await down(written, "written-1/make")).nodes.values()}
