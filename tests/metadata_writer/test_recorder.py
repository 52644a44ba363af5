import asyncio
import dataclasses
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.mlmd import StoreClient, StoreError, StoreUnavailable
from metadata_writer.recorder import Recorder, Wish
from metadata_writer.records import Input, Output, Run, State, StepRecord

TAGS = pytest.StashKey()
RUN = Run("run-1", "pipelines", "uid-1")


def step(name, state=State.COMPLETE, run=RUN, **fields):
    custom = {"kfp_pod_name": f"{run.name}-{name}", **fields.pop("custom", {})}
    return StepRecord(
        external_id=f"{run.workflow_uid}/{run.name}-{name}",
        run=run,
        type_name=f"components.{name}",
        component_id=name,
        state=state,
        custom=custom,
        **fields,
    )


def output(name, uri, type_name="NoType"):
    return Output(name, type_name, uri, {"name": name, "size": 3})


def make(run=RUN, uri="minio://b/model", **fields):
    return step("make", run=run, outputs=(output("model", uri, "Model"),), **fields)


def use(run=RUN, uri="minio://b/model", **fields):
    return step("use", run=run, inputs=(Input("model", uri),), **fields)


@pytest.fixture
async def client(store):
    async with StoreClient(store.address) as client:
        yield client


@pytest.fixture
def recorder(client):
    return Recorder(client)


async def graph_of(store):
    return await asyncio.to_thread(store.graph)


async def test_a_step_is_an_execution_of_its_run_with_its_artifacts(store, recorder):
    await recorder.record(make(custom={"input:n": 3, "rate": 0.5, "on": True, "started_at": 5}))
    client = store.client
    (context,) = client.get_contexts()
    assert (context.type, context.name) == ("KfpRun", "run-1")
    assert context.properties["run_id"].string_value == "run-1"
    assert context.custom_properties["namespace"].string_value == "pipelines"
    (execution,) = client.get_executions_by_context(context.id)
    assert execution.type == "components.make"
    assert execution.external_id == "uid-1/run-1-make"
    assert execution.last_known_state == mlmd.Execution.COMPLETE
    assert execution.properties["component_id"].string_value == "make"
    assert execution.custom_properties["input:n"].int_value == 3
    assert execution.custom_properties["rate"].double_value == 0.5
    assert execution.custom_properties["on"].bool_value is True
    (artifact,) = client.get_artifacts_by_context(context.id)
    assert (artifact.type, artifact.uri, artifact.state) == ("Model", "minio://b/model", mlmd.Artifact.LIVE)
    assert artifact.external_id == "uid-1/run-1-make/model"
    (event,) = client.get_events_by_execution_ids([execution.id])
    assert (event.type, event.artifact_id) == (mlmd.Event.OUTPUT, artifact.id)
    assert [s.key for s in event.path.steps] == ["model"]


async def test_recording_twice_writes_once(store, recorder):
    assert (await recorder.record(make())).written
    before = await graph_of(store)
    assert not (await recorder.record(make())).written
    assert await graph_of(store) == before


async def test_what_becomes_known_later_is_added(store, recorder):
    await recorder.record(step("make", State.RUNNING, custom={"started_at": 1}))
    await recorder.record(make(custom={"finished_at": 2}))
    (execution,) = store.client.get_executions()
    assert execution.last_known_state == mlmd.Execution.COMPLETE
    assert execution.custom_properties["started_at"].int_value == 1
    assert execution.custom_properties["finished_at"].int_value == 2
    assert len(store.client.get_artifacts()) == 1


async def test_an_earlier_state_takes_nothing_back(recorder):
    await recorder.record(make(custom={"finished_at": 2}))
    assert not (await recorder.record(step("make", State.RUNNING))).written


async def test_the_workflows_word_closes_a_step_and_overrules_no_pod(store, recorder):
    await recorder.record(step("make", State.RUNNING, custom={"host_node": "n1"}))
    from_workflow = make(state=State.CACHED, from_pod=False, custom={"host_node": "", "finished_at": 9})
    await recorder.record(dataclasses.replace(from_workflow, state=State.COMPLETE))
    await recorder.record(from_workflow)
    (execution,) = store.client.get_executions()
    assert execution.last_known_state == mlmd.Execution.COMPLETE
    assert execution.custom_properties["host_node"].string_value == "n1"
    assert execution.custom_properties["finished_at"].int_value == 9
    assert len(store.client.get_artifacts()) == 1


async def test_an_input_is_the_artifact_that_is_at_its_place(store, recorder):
    await recorder.record(make())
    await recorder.record(use())
    (artifact,) = store.client.get_artifacts()
    events = {e.type: e for e in store.client.get_events_by_artifact_ids([artifact.id])}
    assert set(events) == {mlmd.Event.INPUT, mlmd.Event.OUTPUT}
    assert [s.key for s in events[mlmd.Event.INPUT].path.steps] == ["model"]


async def test_an_input_belongs_to_the_run_that_used_it_too(store, recorder):
    other = Run("run-2", "pipelines", "uid-2")
    await recorder.record(make())
    await recorder.record(use(run=other))
    context = store.client.get_context_by_type_and_name("KfpRun", "run-2")
    assert [a.uri for a in store.client.get_artifacts_by_context(context.id)] == ["minio://b/model"]


async def test_of_several_artifacts_at_one_place_the_own_runs_is_the_input(store, recorder):
    other = Run("run-2", "pipelines", "uid-2")
    await recorder.record(make())
    await recorder.record(make(run=other))
    await recorder.record(use())
    (used,) = (e for e in store.client.get_executions() if e.type == "components.use")
    (event,) = store.client.get_events_by_execution_ids([used.id])
    (artifact,) = store.client.get_artifacts_by_id([event.artifact_id])
    assert artifact.external_id == "uid-1/run-1-make/model"


async def test_an_input_stays_joined_to_the_artifact_it_was_when_its_place_is_written_again(store, recorder):
    early, late = Run("run-0", "pipelines", "uid-0"), Run("run-2", "pipelines", "uid-2")
    await recorder.record(make(run=early))
    await recorder.record(use())
    await recorder.record(make(run=late))
    assert not (await recorder.record(use())).written


async def test_an_unknown_input_is_named_until_its_producer_is_recorded(store, recorder):
    assert (await recorder.record(use())).unresolved == ("model",)
    (execution,) = store.client.get_executions()
    assert execution.custom_properties["unresolved_inputs"].string_value == "model"
    assert not (await recorder.record(use())).written
    await recorder.record(make())
    assert (await recorder.record(use())).unresolved == ()
    (execution,) = (e for e in store.client.get_executions() if e.type == "components.use")
    assert "unresolved_inputs" not in execution.custom_properties


async def test_one_artifact_read_under_two_names_is_one_event_with_both(store, recorder):
    twice = step("use", inputs=(Input("a", "minio://b/model"), Input("b", "minio://b/model")))
    await recorder.record(make())
    await recorder.record(twice)
    assert not (await recorder.record(twice)).written
    (used,) = (e for e in store.client.get_executions() if e.type == "components.use")
    (event,) = store.client.get_events_by_execution_ids([used.id])
    assert [s.key for s in event.path.steps] == ["a", "b"]


async def test_workflows_of_one_name_in_two_namespaces_are_two_runs(store, recorder):
    other = Run("run-1", "elsewhere", "uid-2")
    await recorder.record(make())
    await recorder.record(make(run=other, uri="minio://b/other"))
    await recorder.record(make())
    first, second = sorted(store.client.get_contexts(), key=lambda c: c.id)
    assert (first.name, second.name) == ("run-1", "elsewhere/run-1")
    assert second.properties["run_id"].string_value == "run-1"
    assert [len(store.client.get_executions_by_context(c.id)) for c in (first, second)] == [1, 1]
    again = Recorder(recorder._store)
    assert not (await again.record(make(run=other, uri="minio://b/other"))).written


async def test_a_run_of_a_pipeline_that_is_known_belongs_to_both(store, recorder):
    await recorder.record(step("make", State.RUNNING))
    await recorder.record(make(run=dataclasses.replace(RUN, pipeline="train")))
    run, pipeline = sorted(store.client.get_contexts(), key=lambda c: c.id)
    assert (run.type, pipeline.type, pipeline.name) == ("KfpRun", "system.Pipeline", "train")
    for context in (run, pipeline):
        assert len(store.client.get_executions_by_context(context.id)) == 1
        assert len(store.client.get_artifacts_by_context(context.id)) == 1


async def test_a_run_that_kubeflows_writer_began_is_gone_on_with(store, recorder):
    await recorder.record(make())
    client = store.client
    (context,) = client.get_contexts()
    theirs = mlmd.Context(type_id=context.type_id, name="theirs")
    client.put_contexts([theirs])
    await recorder.record(make(run=Run("theirs", "pipelines", "uid-3")))
    assert len(client.get_contexts()) == 2


async def test_steps_of_many_runs_are_recorded_together_producers_first(store, recorder):
    other = Run("run-2", "pipelines", "uid-2")
    wishes = [Wish(r, patient=True) for r in (use(), reused(run=other), make())]
    outcomes = await recorder.record_all(wishes)
    assert all(o.written and not o.unresolved for o in outcomes)
    (artifact,) = store.client.get_artifacts()
    assert [o.ids.inputs | o.ids.outputs for o in outcomes] == [{"model": artifact.id}] * 3
    assert all(not o.written for o in await recorder.record_all(wishes))


async def test_a_workflow_that_is_called_as_a_column_spoils_it_for_no_other(store, recorder):
    await recorder.record(make())
    runs = [Run(name, "pipelines", f"uid-{name}") for name in ("name", "id", "other")]
    results = await recorder.record_all([Wish(make(run)) for run in runs])
    assert [result.written for result in results] == [True, True, True]
    assert {context.name for context in store.client.get_contexts()} == {"run-1", "name", "id", "other"}


async def test_an_output_that_is_reported_twice_is_recorded_once(store, recorder):
    made = output("model", "minio://b/model")
    assert (await recorder.record(step("make", outputs=(made, made)))).written
    assert [artifact.uri for artifact in store.client.get_artifacts()] == ["minio://b/model"]


async def test_a_step_that_the_store_refuses_spoils_it_for_no_other(store, recorder):
    broken = dataclasses.replace(use(), type_name="")
    good, bad, fine = await recorder.record_all([Wish(make()), Wish(broken), Wish(step("other"))])
    assert good.written
    assert isinstance(bad, StoreError)
    assert fine.written


async def test_a_writer_that_is_behind_takes_no_finished_step_back(client, store):
    ahead, behind = Recorder(client), Recorder(client)
    running = dataclasses.replace(make(state=State.RUNNING), outputs=())
    await behind.record(running)

    class Overtaken:
        """A store in which the other writer finishes the step between a look and a put."""

        async def call(self, rpc, request, **options):
            if rpc == "PutLineageSubgraph":
                await ahead.record(make())
            return await client.call(rpc, request, **options)

    late = dataclasses.replace(running, inputs=(Input("in", "minio://b/in"),))
    await ahead.record(step("before", outputs=(output("in", "minio://b/in"),)))
    await Recorder(Overtaken()).record(late)
    (execution,) = (e for e in store.client.get_executions() if e.type == "components.make")
    assert execution.last_known_state == mlmd.Execution.COMPLETE
    assert len(store.client.get_events_by_execution_ids([execution.id])) == 2


async def test_a_replica_that_leads_no_more_when_it_comes_to_put_puts_nothing(client, store):
    led = ["elsewhere"]
    recorder = Recorder(client, lambda namespace: namespace in led)
    assert (await recorder.record(make())).not_ours
    assert store.client.get_executions() == []
    led.append("pipelines")
    assert (await recorder.record(make())).written


def reused(run=None, **fields):
    run = run or Run("run-2", "pipelines", "uid-2")
    fields.setdefault("source_execution", "uid-1/run-1-make")
    return make(run=run, state=State.CACHED, **fields)


async def test_a_reused_step_shares_the_artifacts_of_the_run_it_reuses(store, recorder):
    await recorder.record(make())
    outcome = await recorder.record(reused(), patient=True)
    assert outcome.written
    assert not outcome.unresolved
    (artifact,) = store.client.get_artifacts()
    source, copy = sorted(store.client.get_executions(), key=lambda e: e.id)
    assert copy.last_known_state == mlmd.Execution.CACHED
    assert copy.custom_properties["cached_execution_id"].int_value == source.id
    events = store.client.get_events_by_artifact_ids([artifact.id])
    assert sorted((e.execution_id, e.type) for e in events) == [
        (source.id, mlmd.Event.OUTPUT),
        (copy.id, mlmd.Event.OUTPUT),
    ]
    assert not (await recorder.record(reused(), patient=True)).written


async def test_a_reused_step_waits_for_its_source_and_then_goes_without(store, recorder):
    assert (await recorder.record(reused(), patient=True)).awaits_source
    assert store.client.get_executions() == []
    outcome = await recorder.record(reused(), patient=False)
    assert outcome.unresolved == ("model",)
    (execution,) = store.client.get_executions()
    assert execution.custom_properties["unresolved_outputs"].string_value == "model"
    assert store.client.get_artifacts() == []
    await recorder.record(make())
    await recorder.record(reused())
    (copy,) = (e for e in store.client.get_executions() if e.external_id.startswith("uid-2/"))
    assert "unresolved_outputs" not in copy.custom_properties
    assert copy.custom_properties["cached_execution_id"].int_value > 0


async def test_a_source_without_its_outputs_yet_is_waited_for(recorder):
    await recorder.record(step("make", State.RUNNING))
    assert (await recorder.record(reused(), patient=True)).awaits_source


async def test_a_step_that_only_its_workflow_knows_was_reused_finds_its_source_by_its_outputs(
    store, recorder
):
    await recorder.record(make())
    await recorder.record(reused(source_execution=None, from_pod=False), patient=True)
    source, copy = sorted(store.client.get_executions(), key=lambda e: e.id)
    assert copy.custom_properties["cached_execution_id"].int_value == source.id
    assert len(store.client.get_artifacts()) == 1


@pytest.mark.parametrize("store", [3], indirect=True, ids=["three workers"])
async def test_many_recorders_at_once_write_each_step_once(store, client):
    steps = [
        make(),
        use(),
        reused(),
        *(step(f"s{n}", outputs=(output("o", f"s3://b/{n}"),)) for n in range(5)),
    ]
    recorders = [Recorder(client) for _ in range(4)]
    await asyncio.gather(*(r.record(s) for r in recorders for s in steps))
    for one in steps:  # inputs and shared artifacts whose producer came later
        await recorders[0].record(one)
    graph = await graph_of(store)
    assert set(graph["nodes"].values()) == {1}
    assert set(graph["edges"].values()) == {1}
    assert len(store.client.get_executions()) == len(steps)


class Interrupted(Exception):
    pass


class CrashingStore:
    """The real store behind a process that dies before or after its n-th call."""

    def __init__(self, client, calls, *, answered):
        self._client, self._left, self._answered = client, calls, answered

    async def call(self, rpc, request, **options):
        self._left -= 1
        if self._left < 0 and not self._answered:
            raise Interrupted
        answer = await self._client.call(rpc, request, **options)
        if self._left < 0:
            raise Interrupted
        return answer


@pytest.mark.parametrize("answered", [False, True], ids=["before a call", "after a call"])
async def test_a_crash_between_two_calls_leaves_no_gap_and_no_duplicate(store, client, answered):
    steps = [make(), use(), reused()]
    for calls in range(30):
        crashing = Recorder(CrashingStore(client, calls, answered=answered))
        try:
            for one in steps:
                await crashing.record(one)
        except Interrupted:
            continue
        break
    for one in steps:
        assert not (await Recorder(client).record(one)).written
    graph = await graph_of(store)
    assert set(graph["nodes"].values()) == {1}
    assert set(graph["edges"].values()) == {1}
    assert len(store.client.get_executions()) == 3
    assert len(store.client.get_artifacts()) == 1


async def record_soon(recorder, record):
    """Record as soon as the store is found again: its channel looks every two seconds at least."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await recorder.record(record)
            except StoreUnavailable:
                await asyncio.sleep(0.1)


async def test_a_store_that_is_away_is_said_so_and_found_again(store, recorder):
    await recorder.record(make())
    before = await graph_of(store)
    store.kill()
    with pytest.raises(StoreUnavailable):
        await recorder.record(use())
    await asyncio.to_thread(store.start)
    assert not (await record_soon(recorder, make())).written
    await recorder.record(use())
    after = await graph_of(store)
    assert not before["nodes"] - after["nodes"]


async def test_a_store_that_was_wiped_is_filled_anew(store, recorder):
    await recorder.record(make())
    before = await graph_of(store)
    store.kill()
    store.wipe()
    await asyncio.to_thread(store.start)
    await record_soon(recorder, make())
    assert await graph_of(store) == before


async def test_what_the_store_refuses_for_good_is_an_error(recorder):
    with pytest.raises(StoreError):
        await recorder.record(dataclasses.replace(make(), type_name=""))


def story(tag):
    """Two runs as they may be seen, whose records end the same in any order."""
    first, second = (Run(f"{tag}-{n}", "pipelines", f"{tag}-uid-{n}") for n in (1, 2))
    at = {"run": first, "uri": f"minio://{tag}/model"}
    again = {"run": second, "uri": at["uri"], "source_execution": f"{tag}-uid-1/{tag}-1-make"}
    begun, made = make(state=State.RUNNING, **at), make(custom={"finished_at": 2}, **at)
    failed = use(state=State.FAILED, custom={"finished_at": 3}, **at)
    shared = reused(**again)
    return [
        dataclasses.replace(begun, outputs=()),
        made,
        make(from_pod=False, custom={"input:x": "1", "finished_at": 1}, **at),
        use(state=State.RUNNING, **at),
        failed,
        use(state=State.FAILED, from_pod=False, custom={"finished_at": 4}, **at),
        shared,
    ], [made, failed, shared]


async def tell(store, tag, order):
    seen, looked_at_again = story(tag)
    async with StoreClient(store.address) as client:
        recorder = Recorder(client)
        for record in [*(seen[n] for n in order), *looked_at_again]:
            await recorder.record(record)


def graph_of_story(store, tag):
    return {
        part: sorted((repr(item).replace(tag, "TAG"), n) for item, n in counted.items() if tag in repr(item))
        for part, counted in store.graph().items()
    }


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(7)).flatmap(
        lambda order: st.lists(st.integers(0, 6), max_size=4).map(lambda more: [*order, *more])
    )
)
def test_order_and_repetition_of_what_is_seen_do_not_matter(store, order, request):
    tags = request.node.stash.setdefault(TAGS, itertools.count(1))
    tag = f"story{next(tags):04}"
    asyncio.run(tell(store, "story0000", range(7)))
    asyncio.run(tell(store, tag, order))
    expected = graph_of_story(store, "story0000")
    assert len(expected["nodes"]) == 6  # two contexts, three executions, one artifact
    assert graph_of_story(store, tag) == expected
