"""What pruning takes and what it leaves: the rules by themselves, and on each database."""

import asyncio
import json
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service
from typer.testing import CliRunner

from cache_server.entries import open_entries
from cache_server.entries.databases import create_engine
from cache_server.entries.schema import entries
from memopod.cli.store import app, sources
from metadata_store import tables
from metadata_store.connection import for_core, from_url
from metadata_store.prune import INPUTS, RUNNING, ExecutionRow, Graph, plan
from metadata_store.tables import open_records

COMPLETE, INPUT, OUTPUT = 3, 3, 4


def graph(executions, **parts):
    """Executions as id -> (changed, state) or id -> changed; everything else as in Graph."""
    rows = {}
    for number, given_ in executions.items():
        changed, state = given_ if isinstance(given_, tuple) else (given_, COMPLETE)
        rows[number] = ExecutionRow(number, state, changed, f"run/{number}")
    return Graph(executions=rows, **parts)


def test_an_old_run_goes_with_its_artifacts():
    old = graph({1: 5, 2: 5}, artifacts={7: 5}, runs={3: 5}, members=[(3, 1), (3, 2)],
                events=[(7, 1, OUTPUT), (7, 2, INPUT)])  # fmt: skip
    chosen = plan(old, before=10)
    assert (chosen.executions, list(chosen.artifacts), chosen.runs) == ([1, 2], [7], [3])


@pytest.mark.parametrize(
    ("one", "why"),
    [(15, "younger"), ((5, RUNNING), "not finished")],
)
def test_the_whole_run_of_a_kept_execution_is_kept(one, why):
    chosen = plan(graph({1: one, 2: 5}, runs={3: 5}, members=[(3, 1), (3, 2)]), before=10)
    assert (chosen.executions, chosen.runs) == ([], [])
    assert chosen.kept == {why: 1, "what is kept refers to it": 1}


def test_what_made_something_that_a_kept_run_used_is_kept_and_so_on():
    chain = graph({1: 5, 2: 5, 3: 15, 4: 5}, artifacts={7: 5, 8: 5, 9: 5},
                  events=[(7, 1, OUTPUT), (7, 2, INPUT), (8, 2, OUTPUT), (8, 3, INPUT), (8, 4, INPUT),
                          (9, 4, OUTPUT)])  # fmt: skip
    chosen = plan(chain, before=10)
    assert chosen.executions == [4]  # it only read what is kept
    assert list(chosen.artifacts) == [9]


def test_what_a_cache_entry_came_from_is_kept():
    assert plan(graph({1: 5, 2: 5, 3: 5}), before=10, ids={1}, external_ids={"run/2"}).executions == [3]


def test_what_a_kept_execution_names_is_kept():
    assert plan(graph({1: 5, 2: 15}, references=[(2, 1)]), before=10).executions == []


def test_an_artifact_that_nothing_made_or_read_is_kept():
    assert plan(graph({1: 5}, artifacts={7: 5}), before=10).artifacts == {}


def test_a_run_that_still_holds_something_is_kept():
    runs = {"runs": {3: 5, 4: 5, 5: 5}, "members": [(3, 1), (4, 1), (5, 1)]}
    held = graph({1: 5}, artifacts={7: 5, 8: 5}, events=[(7, 1, OUTPUT)], attributed=[(3, 7), (4, 8)],
                 parents={5}, **runs)  # fmt: skip
    assert plan(held, before=10).runs == [3]


def test_an_old_run_without_executions_goes():
    assert plan(graph({}, runs={3: 5, 4: 15}), before=10).runs == [3]


NUMBERS = st.integers(1, 8)


@given(
    st.dictionaries(NUMBERS, st.tuples(st.sampled_from([5, 15]), st.sampled_from([2, 3]))),
    st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 6)), max_size=20),
    st.lists(st.tuples(st.integers(1, 3), NUMBERS), max_size=10),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5),
    st.sets(NUMBERS, max_size=2),
)
def test_nothing_that_is_kept_misses_what_it_needs(executions, events, members, references, ids):
    whole = graph(
        executions, artifacts=dict.fromkeys(range(1, 9), 5), runs=dict.fromkeys(range(1, 4), 5),
        events=[each for each in events if each[1] in executions],
        members=[each for each in members if each[1] in executions], references=references,
    )  # fmt: skip
    chosen = plan(whole, before=10, ids=ids)
    gone = set(chosen.executions)
    assert not gone & ids
    assert all(whole.executions[one].changed < 10 and whole.executions[one].state == COMPLETE for one in gone)
    by_run = defaultdict(set)
    for run, execution in whole.members:
        by_run[run].add(execution in gone)
    assert all(len(fates) == 1 for fates in by_run.values())
    assert set(chosen.runs) == {run for run in whole.runs if by_run[run] <= {True}}
    makers = defaultdict(set)
    for artifact, execution, kind in whole.events:
        if kind not in INPUTS:
            makers[artifact].add(execution)
    for artifact, execution, _ in whole.events:
        if execution not in gone:
            assert artifact not in chosen.artifacts
            assert not makers[artifact] & gone
    assert not {other for execution, other in references if execution in executions.keys() - gone} & gone


def run(*flags, **environ):
    return CliRunner().invoke(app, ["prune", *flags], env={"MEMOPOD_CACHE_DATABASE": None, **environ})


def prune(url, *flags):
    result = run(
        "--older-than", "P90D", "--json", "--without-cache", *flags, MEMOPOD_METADATA_STORE_DATABASE=url
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def a_run(client, types, name, source=None):
    """A run of two steps: the first makes an artifact (and reads `source`), the second reads it."""
    context = mlmd.Context(type_id=types["run"], name=name)
    pairs = [] if source is None else [(source, mlmd.Event(type=mlmd.Event.INPUT))]
    made = mlmd.Artifact(type_id=types["data"], name=f"{name}-data", uri=f"s3://b/{name}")
    made.custom_properties["rows"].int_value = 3
    event = mlmd.Event(type=mlmd.Event.OUTPUT)
    event.path.steps.add().key = "data"
    first = mlmd.Execution(type_id=types["step"], name=f"{name}-1", last_known_state=mlmd.Execution.COMPLETE)
    first.custom_properties["note"].string_value = "x"
    _, artifact_ids, context_ids = client.put_execution(first, [*pairs, (made, event)], [context])
    made.id, context.id = artifact_ids[-1], context_ids[0]
    second = mlmd.Execution(type_id=types["step"], name=f"{name}-2", last_known_state=mlmd.Execution.COMPLETE)
    client.put_execution(
        second, [(made, mlmd.Event(type=mlmd.Event.INPUT))], [context], reuse_context_if_already_exist=True
    )
    return made


@pytest.mark.parametrize("kind", ["sqlite", "mysql", "postgresql"])
def test_old_runs_are_deleted_on_each_database_and_what_is_left_is_whole(
    kind, request, tmp_path, database_on
):
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/m.db"
    else:
        url = database_on(request.getfixturevalue({"mysql": "mariadb"}.get(kind, kind)), kind).url
    client = MetadataStore(for_core(from_url(url)))
    types = {
        "run": client.put_context_type(mlmd.ContextType(name="KfpRun")),
        "step": client.put_execution_type(mlmd.ExecutionType(name="step")),
        "data": client.put_artifact_type(mlmd.ArtifactType(name="data")),
    }
    a_run(client, types, "gone")
    needed = a_run(client, types, "needed")
    age(url, before=int(time.time() * 1000) - 100 * 24 * 3600 * 1000)
    a_run(client, types, "young", source=needed)
    told = prune(url)
    assert (told["deleted"], told["executions"], told["artifacts"], told["runs"]) == (False, 2, 1, 1)
    assert len(client.get_executions()) == 6
    done = prune(url, "--yes")
    assert done == told | {"deleted": True}
    assert {e.name for e in client.get_executions()} == {
        f"{run}-{n}" for run in ("needed", "young") for n in (1, 2)
    }
    assert {a.name for a in client.get_artifacts()} == {"needed-data", "young-data"}
    assert {c.name for c in client.get_contexts()} == {"needed", "young"}
    events = client.get_events_by_execution_ids([e.id for e in client.get_executions()])
    assert len(events) == 5
    assert prune(url, "--yes")["executions"] == 0
    a_run(client, types, "gone")  # the names are free again


def filled(url, runs):
    client = MetadataStore(for_core(from_url(url)))
    types = {
        "run": client.put_context_type(mlmd.ContextType(name="KfpRun")),
        "step": client.put_execution_type(mlmd.ExecutionType(name="step")),
        "data": client.put_artifact_type(mlmd.ArtifactType(name="data")),
    }
    made = [a_run(client, types, f"old-{number}") for number in range(runs)]
    age(url, before=int(time.time() * 1000) - 100 * 24 * 3600 * 1000)
    return client, types, made


@pytest.fixture(params=["sqlite", "mysql", "postgresql"])
def a_url(request, tmp_path, database_on):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/m.db"
    server = request.getfixturevalue({"mysql": "mariadb"}.get(request.param, request.param))
    return database_on(server, request.param).url


def test_what_an_interrupted_run_left_goes_with_the_next(a_url, monkeypatch):
    monkeypatch.setattr(tables, "_BATCH", 3)
    client, _, _ = filled(a_url, 4)
    before = int(time.time() * 1000) - 90 * 24 * 3600 * 1000

    async def interrupted():
        async with open_records(a_url) as records:
            deleting = records.delete(plan(await records.read(), before=before), before=before)
            async for _ in deleting:
                break
            await deleting.aclose()

    asyncio.run(interrupted())
    assert len(client.get_executions()) == 5
    told = prune(a_url)
    assert (told["executions"], told["artifacts"], told["runs"]) == (5, 3, 4)
    assert prune(a_url, "--yes") == told | {"deleted": True}
    assert (client.get_executions(), client.get_artifacts(), client.get_contexts()) == ([], [], [])


def shares_the_artifact(client, types, made):
    pairs = [(made, mlmd.Event(type=mlmd.Event.INPUT))]
    client.put_execution(mlmd.Execution(type_id=types["step"], name="new"), pairs, [])


def joins_the_run(client, types, _):
    (context,) = [each for each in client.get_contexts() if each.name == "old-0"]
    step = mlmd.Execution(type_id=types["step"], name="new")
    client.put_execution(step, [], [context], reuse_context_if_already_exist=True)


def names_the_maker(client, types, made):
    (event,) = [
        each for each in client.get_events_by_artifact_ids([made.id]) if each.type == mlmd.Event.OUTPUT
    ]
    step = mlmd.Execution(type_id=types["step"], name="new")
    step.custom_properties["cached_execution_id"].int_value = event.execution_id
    client.put_execution(step, [], [])


@pytest.mark.parametrize("use", [shares_the_artifact, joins_the_run, names_the_maker])
def test_what_is_used_again_after_the_plan_is_kept(a_url, use):
    client, types, made = filled(a_url, 2)
    before = int(time.time() * 1000) - 90 * 24 * 3600 * 1000

    async def pruned():
        async with open_records(a_url) as records:
            chosen = plan(await records.read(), before=before)
            use(client, types, made[0])
            async for _ in records.delete(chosen, before=before):
                pass

    asyncio.run(pruned())
    kept = {execution.name for execution in client.get_executions()}
    assert {"new", "old-0-1"} <= kept
    assert not {"old-1-1", "old-1-2"} & kept


def test_writers_beside_it_lose_nothing(a_url, monkeypatch, start_store):
    monkeypatch.setattr(tables, "_BATCH", 3)
    client, types, made = filled(a_url, 12)
    del client
    store = start_store("--workers=2", url=a_url)
    begun, done, codes = threading.Event(), threading.Event(), {}

    def write():
        number = 0
        while not done.is_set() or number < 10:
            request = service.PutExecutionRequest(
                execution=mlmd.Execution(type_id=types["step"], name=f"new-{number}")
            )
            artifact = made[number % len(made)]
            request.artifact_event_pairs.add(
                artifact=mlmd.Artifact(id=artifact.id, type_id=types["data"], uri=artifact.uri),
                event=mlmd.Event(type=mlmd.Event.INPUT),
            )
            codes[f"new-{number}"] = store.call("PutExecution", request).code()
            begun.set()
            number += 1

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        try:
            assert begun.wait(30)
            prune(a_url, "--yes")
        finally:
            done.set()
        writing.result()
    gone = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}  # its artifact was deleted before
    assert set(codes.values()) <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED, *gone}
    kept = {execution.name for execution in store.client().get_executions()}
    assert {name for name, code in codes.items() if code == grpc.StatusCode.OK} <= kept

    async def left():
        async with open_records(a_url) as records:
            return await records.read()

    whole = asyncio.run(left())
    assert {execution for _, execution, _ in whole.events} <= whole.executions.keys()
    assert {artifact for artifact, _, _ in whole.events} <= whole.artifacts.keys()


def age(url, *, before):
    """Date everything back: the store sets these times itself."""

    async def run():
        async with open_records(url) as records, records._engine.begin() as connection:
            for name in ("Execution", "Artifact", "Context"):
                table = records._tables[name]
                await connection.execute(table.update().values(last_update_time_since_epoch=before))

    asyncio.run(run())


def test_pruning_says_what_it_needs(tmp_path):
    missing = f"sqlite:///{tmp_path}/missing.db"
    for flags, told in (
        (["90", "--database", missing, "--without-cache"], "expected a duration such as P90D"),
        (["P90D", "--database", missing], "--cache-database"),
        (["P90D", "--database", missing, "--without-cache"], "missing.db"),
        (["P90D", "--database", "oracle://x", "--without-cache"], "expected sqlite"),
    ):
        result = run("--older-than", *flags)
        assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "missing.db").exists()


async def test_what_entries_came_from_is_told_by_their_database(tmp_path):
    url = f"sqlite:///{tmp_path}/cache.db"
    async with open_entries(url):
        pass
    now = datetime.now(UTC)
    engine = create_engine(url, busy_timeout=5)
    async with engine.begin() as connection:
        await connection.execute(
            entries.insert().values(
                id="1", namespace="n", entry_key="k", key_version=1, components="{}", template_name="t",
                workflow="w", workflow_uid="uid", node_id="node", pod_name="p", pod_uid="u", image_id="",
                outputs="{}", execution_id=7, started_at=now, finished_at=now, recorded_at=now, uses=0,
            )
        )  # fmt: skip
    await engine.dispose()
    assert await sources(url) == ({7}, {"uid/node"})
