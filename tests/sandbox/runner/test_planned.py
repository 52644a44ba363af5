import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cache_server.entries import Entry, open_entries
from cache_server.entries.candidates import InDatabase
from cache_server.preview import REUSE, RUN, UNKNOWN, Preview
from memopod.sandbox.argo import build_pod
from memopod.sandbox.pipelines import parse_parameters, read_pipeline
from memopod.sandbox.runner import pipeline_steps
from memopod.steps import Location, OutputArtifact, Outputs, read_step
from memopod.steps.components import base_components
from memopod.steps.key import KEY_VERSION, component_digest
from memopod.steps.manifest import Known, Produced
from memopod.steps.outputs import declared

EXAMPLES = Path(__file__).parents[3] / "memopod" / "sandbox" / "examples"
NOW = datetime(2026, 11, 24, tzinfo=UTC)
WORKFLOW = {"metadata": {"name": "run-1", "namespace": "pipelines", "uid": "u"}}


def ran(planned):
    """The entry that a step leaves behind which the sandbox runs."""
    template = planned.template
    pod = build_pod(WORKFLOW, f"run-1.{planned.path}", template, trace_id="0", span_id="0")
    known = {n: component_digest(v) for n, v in base_components(read_step(pod)).items()}
    for name, value in planned.artifacts.items():
        known[f"input.{name}"] = component_digest(["content", value.artifact.digest, value.artifact.size])
    artifacts = []
    for artifact in declared(template, "artifacts"):
        key = f"run-1/{planned.path}"
        reported = {**artifact, "s3": {"key": key}}
        location = Location("s3", "e", "b", key)
        artifacts.append(
            OutputArtifact(
                name=artifact["name"], location=location, reported=reported, size=1, digest="md5:0"
            )
        )
    parameters = {p["name"]: "1" for p in declared(template, "parameters")}
    return Entry(
        id=uuid.uuid4().hex, namespace="pipelines", key=uuid.uuid4().hex, key_version=KEY_VERSION,
        components=known, template_name=template["name"], workflow="run-1", workflow_uid="u", node_id="n",
        pod_name=pod["metadata"]["name"], pod_uid=uuid.uuid4().hex, image_id="",
        outputs=Outputs(parameters=parameters, artifacts=tuple(artifacts)), execution_id=None,
        started_at=NOW, finished_at=NOW, recorded_at=NOW,
    )  # fmt: skip


async def run_all(entries, plan, parameters):
    """Play a run in which every step runs, and leaves an entry."""
    steps = pipeline_steps(plan, parameters)
    count, planned = 0, next(steps)
    while True:
        entry = ran(planned)
        assert await entries.put(entry)
        count += 1
        artifacts = {a.name: Produced(a, entry.id, a.reported) for a in entry.outputs.artifacts}
        try:
            planned = steps.send(Known(parameters=entry.outputs.parameters, artifacts=artifacts))
        except StopIteration:
            return count


@pytest.fixture
async def entries(tmp_path):
    async with open_entries(f"sqlite:///{tmp_path / 'cache.db'}") as opened:
        yield opened


@pytest.fixture(params=sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def plan(request):
    return read_pipeline(EXAMPLES / request.param)


async def test_a_pipeline_that_ran_would_be_reused_and_one_that_did_not_would_run(entries, plan):
    required = [f"{n}=x" for n, p in plan.parameters.items() if p.default is None and not p.optional]
    parameters = parse_parameters(required, plan.parameters)
    judged = await Preview(InDatabase(entries.database), "pipelines", now=NOW).judge(
        pipeline_steps(plan, parameters)
    )
    assert judged[0].verdict == RUN
    assert {verdict.verdict for verdict in judged} <= {RUN, UNKNOWN}
    count = await run_all(entries, plan, parameters)
    judged = await Preview(InDatabase(entries.database), "pipelines", now=NOW).judge(
        pipeline_steps(plan, parameters)
    )
    assert [(v.verdict, v.path) for v in judged if v.verdict != REUSE] == []
    assert len(judged) == count == len(plan.tasks)
