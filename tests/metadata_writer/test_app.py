import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.kube import CONFIG_MAPS, EVENTS, LEASES, PODS, TASK_RESULTS, WORKFLOWS
from memopod.steps import names
from tests.chaos.store_proxy import StoreProxy

COMPLETE, FAILED = mlmd.Execution.COMPLETE, mlmd.Execution.FAILED


@pytest.fixture
def states(store):
    """State of each execution, by external id."""

    def read():
        return {e.external_id: e.last_known_state for e in store.client.get_executions()}

    return read


def memopod_writer_status(writer, *more):
    command = [sys.executable, "-m", "memopod.cli", "writer", "status", *more]
    command += ["--url", f"http://127.0.0.1:{writer.health_port}"]
    environment = os.environ | {"COLUMNS": "250"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def custom(execution):
    return {k: getattr(v, v.WhichOneof("value")) for k, v in execution.custom_properties.items()}


def execution_of(store, external_id):
    (execution,) = (e for e in store.client.get_executions() if e.external_id == external_id)
    return execution


@pytest.mark.parametrize(
    "version", ["argo-3.4.17", "argo-3.5.15", "argo-3.7.18", "argo-4.0.10", "argo-4.1.2"]
)
async def test_a_workflow_is_recorded_while_it_runs(
    cluster, store, start_writer, eventually, states, version
):
    writer = start_writer()
    await eventually(writer.ready)
    workflow = await cluster.submit(version, "parameters")
    make, use = workflow.execution("make"), workflow.execution("use")
    await workflow.create("make")
    await workflow.begin("make")
    await eventually(lambda: states() == {make: mlmd.Execution.RUNNING})
    await workflow.report("make")
    await workflow.finish("make")
    await eventually(lambda: custom(execution_of(store, make)).get("output:Output") == "hello")
    await workflow.run("use")
    await workflow.end()
    await eventually(lambda: states() == {make: COMPLETE, use: COMPLETE})
    await eventually(lambda: custom(execution_of(store, use)).get("input:x") == "hello")
    await eventually(lambda: custom(execution_of(store, make)).get("input:message") == "hello")


async def test_artifacts_join_the_steps_of_a_run(cluster, store, start_writer, eventually, states):
    start_writer()
    workflow = await cluster.submit("argo-4.1.2", "artifacts")
    await workflow.run("make", "use")
    await workflow.end()
    await eventually(lambda: list(states().values()) == [COMPLETE, COMPLETE])

    def joined():
        edges = store.graph()["edges"]
        return sorted((kind, names) for (_, kind, *names), _ in edges.items() if kind in ("INPUT", "OUTPUT"))

    await eventually(lambda: len(joined()) == 6)
    use = custom(execution_of(store, workflow.execution("use")))
    assert use["unresolved_inputs"] == "outside"  # nobody made it


async def test_each_attempt_of_a_step_is_recorded(cluster, start_writer, eventually, states):
    start_writer()
    workflow = await cluster.submit("argo-4.1.2", "retry")
    await workflow.run("0", "1")
    await eventually(lambda: states() == {workflow.execution("0"): FAILED, workflow.execution("1"): COMPLETE})


async def test_a_reused_step_shares_the_artifacts_of_its_source(
    cluster, store, start_writer, eventually, states
):
    start_writer()
    first = await cluster.submit("argo-4.1.2", "artifacts")
    await first.run("make")
    await first.end()
    await eventually(lambda: states() == {first.execution("make"): COMPLETE})
    artifacts = {a.id for a in store.client.get_artifacts()}

    again = await cluster.submit("argo-4.1.2", "initless-artifacts")
    await again.create(
        "make",
        labels={names.STEP_LABEL: names.REUSED},
        annotations={names.SOURCE_EXECUTION: first.execution("make"), names.REASON: "hit"},
    )
    reported = first._load("make", "taskresult")
    node = again.execution("make").partition("/")[2]
    reported["metadata"] = {"name": node, "namespace": cluster.namespace, "labels": {names.ENTRY: "1"}}

    await cluster.client.create(TASK_RESULTS, reported, namespace=cluster.namespace)
    await again.finish("make")
    await eventually(lambda: states().get(again.execution("make")) == mlmd.Execution.CACHED)
    reused = execution_of(store, again.execution("make"))
    source = execution_of(store, first.execution("make"))
    assert custom(reused)["cached_execution_id"] == source.id
    assert custom(reused)["reason"] == "hit"
    assert {a.id for a in store.client.get_artifacts()} == artifacts
    events = store.client.get_events_by_execution_ids([reused.id])
    assert {e.artifact_id for e in events if e.type == mlmd.Event.OUTPUT} == artifacts


async def test_a_reused_step_that_is_seen_before_its_source_is_recorded_after_it(
    cluster, store, start_writer, eventually, states
):
    source, again = [await cluster.submit("argo-4.1.2", name) for name in ("script", "parameters")]
    annotations = {names.SOURCE_EXECUTION: source.execution("s")}
    await again.create("use", labels={names.STEP_LABEL: names.REUSED}, annotations=annotations)
    await again.report("use")
    await again.finish("use")
    writer = start_writer()
    await eventually(lambda: 'retries_total{reason="incomplete"}' in (writer.ask("/metrics") or ("", ""))[1])
    assert states() == {}
    await source.run("s")
    await eventually(lambda: states().get(again.execution("use")) == mlmd.Execution.CACHED)
    cached = custom(execution_of(store, again.execution("use")))["cached_execution_id"]
    assert cached == execution_of(store, source.execution("s")).id


async def test_a_workflow_that_is_seen_to_end_before_its_held_pod_makes_no_artifacts(
    cluster, store, start_writer, eventually, states
):
    writer = start_writer()
    source = await cluster.submit("argo-4.1.2", "artifacts")
    await source.run("make")
    await eventually(lambda: states() == {source.execution("make"): COMPLETE})
    again = await cluster.submit("argo-4.1.2", "initless-artifacts")
    await again.create("make", annotations={names.SOURCE_EXECUTION: source.execution("make")})
    await again.end()
    probe = await cluster.submit("argo-4.1.2", "script")  # when this is recorded, the other was looked at
    await probe.run("s")
    await eventually(lambda: states().get(probe.execution("s")) == COMPLETE)
    assert again.execution("make") not in states()
    assert len(store.client.get_artifacts()) == 3
    assert writer.process.poll() is None


async def test_a_pod_with_a_broken_template_goes_to_quarantine_and_delays_no_other(
    cluster, start_writer, eventually, states
):
    writer = start_writer()
    workflow = await cluster.submit("argo-4.1.2", "parameters")
    broken = workflow._load("make", "pod")
    for container in broken["spec"]["initContainers"]:
        for variable in container["env"]:
            if variable["name"] == names.ENV_TEMPLATE:
                variable["value"] = "{"
    broken["metadata"] |= {"namespace": cluster.namespace, "name": "broken", "uid": "", "resourceVersion": ""}
    await cluster.client.create(PODS, broken, namespace=cluster.namespace)
    await workflow.run("use")
    await eventually(lambda: states() == {workflow.execution("use"): COMPLETE})
    await eventually(lambda: "template-unreadable" in writer.log.read_text())
    status = json.loads(writer.ask("/status")[1])
    assert status["quarantined"] == 1
    assert status["quarantine"][0]["error"] == "TemplateUnreadable: template-unreadable"
    assert status["quarantine"][0]["namespace"] == cluster.namespace
    assert "memopod_writer_steps_quarantined 1.0" in writer.ask("/metrics")[1]

    async def told():
        events = await cluster.client.list(EVENTS, namespace=cluster.namespace)
        return [(e["reason"], e["involvedObject"]["name"], e["type"]) for e in events["items"]]

    assert await told() == [("NotRecorded", "broken", "Warning")]
    shown = await asyncio.to_thread(memopod_writer_status, writer)
    assert shown.returncode == 1
    assert ["quarantine", "1"] in [line.split() for line in shown.stdout.splitlines()]
    assert "template-unreadable" in shown.stdout


async def test_a_step_that_nobody_foresaw_is_told_of_without_its_values(
    cluster, start_writer, eventually, states
):
    writer = start_writer()
    workflow = await cluster.submit("argo-4.1.2", "parameters")
    node_id = workflow.execution("make").partition("/")[2]
    node = workflow.recorded["status"]["nodes"][node_id] | {"inputs": {"parameters": ["hunter2"]}}
    body = {"status": {"nodes": {node_id: node}}}  # nobody validates a Workflow
    await cluster.client.patch(WORKFLOWS, workflow.name, body, namespace=cluster.namespace)
    await workflow.run("make")
    await workflow.run("use")
    await eventually(lambda: states() == {workflow.execution("use"): COMPLETE})
    await eventually(lambda: quarantined(writer) == 1)

    async def events():
        return (await cluster.client.list(EVENTS, namespace=cluster.namespace))["items"]

    async with asyncio.timeout(20):
        while not (found := await events()):  # noqa: ASYNC110 (only asking tells)
            await asyncio.sleep(0.05)
    (event,) = found
    assert "AttributeError: not foreseen" in event["message"]
    assert "reader.py" in writer.log.read_text()
    for told in (event["message"], writer.ask("/status")[1], writer.log.read_text()):
        assert "hunter2" not in told


def quarantined(writer):
    return json.loads(writer.ask("/status")[1])["quarantined"]


async def test_steps_whose_pods_went_while_nobody_looked_are_closed(
    cluster, store, start_writer, eventually, states
):
    writer = start_writer()
    workflow = await cluster.submit("argo-4.1.2", "artifacts")
    await workflow.create("make")
    await workflow.begin("make")
    await eventually(lambda: states() == {workflow.execution("make"): mlmd.Execution.RUNNING})
    writer.kill()
    await workflow.report("make")
    await workflow.finish("make")
    await workflow.run("use")
    await workflow.end()
    await workflow.delete_pods("make", "use")
    start_writer()
    await eventually(lambda: list(states().values()) == [COMPLETE, COMPLETE])
    await eventually(lambda: len(store.client.get_artifacts()) == 3)
    assert custom(execution_of(store, workflow.execution("make")))["kfp_pod_name"].endswith("2913590014")


async def test_a_step_that_goes_with_its_workflow_is_canceled(cluster, start_writer, eventually, states):
    start_writer()
    workflow = await cluster.submit("argo-4.1.2", "parameters")
    await workflow.create("make")
    await workflow.begin("make")
    make = workflow.execution("make")
    await eventually(lambda: states() == {make: mlmd.Execution.RUNNING})
    await workflow.delete()
    await workflow.delete_pods("make")
    await eventually(lambda: states() == {make: mlmd.Execution.CANCELED})


async def test_a_step_that_cannot_be_recorded_delays_no_other_and_comes_back(
    cluster, start_writer, eventually, states
):
    start_writer("--concurrency=1")
    offloaded = await cluster.submit("argo-4.1.2", "offloaded")
    await offloaded.run("")
    workflow = await cluster.submit("argo-4.1.2", "parameters")
    await workflow.run("make")
    await eventually(lambda: states() == {workflow.execution("make"): COMPLETE})
    config_map = offloaded._load("", "configmap")
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": config_map["metadata"]["name"], "namespace": cluster.namespace},
        "data": config_map["data"],
    }
    await cluster.client.create(CONFIG_MAPS, body, namespace=cluster.namespace)
    await eventually(lambda: states().get(offloaded.execution("")) == COMPLETE, seconds=40)


async def test_a_step_whose_calls_alone_are_lost_is_not_taken_for_a_store_that_is_away(
    cluster, store, start_writer, eventually, states
):
    workflow = await cluster.submit("argo-4.1.2", "parameters")
    lost = workflow.execution("make").encode()

    class Losing(StoreProxy):
        async def forward(self, path, request, context):
            if lost in request:
                self.faults += 1
                await asyncio.sleep(context.time_remaining())
            return await super().forward(path, request, context)

    proxy = Losing(store.address, seed=0, rate=0)
    await proxy.start()
    try:
        writer = start_writer("--store-timeout=0.5", "--batch=1", store=proxy)
        await eventually(writer.ready)
        await workflow.run("make", "use")
        await eventually(lambda: states() == {workflow.execution("use"): COMPLETE})
        await eventually(lambda: proxy.faults > 2)
        assert writer.ready()
        assert "the store does not answer" not in writer.log.read_text()
        lost = b"nothing"
        await eventually(lambda: len(states()) == 2)
    finally:
        await proxy.stop()


async def test_pods_of_kubeflow_get_its_labels_by_one_patch_each(
    cluster, store, start_writer, eventually, states
):
    writer = start_writer()
    workflow = await cluster.submit("argo-4.1.2", "artifacts")  # with a label of Kubeflow's
    await workflow.run("make", "use")
    await workflow.end()
    await eventually(lambda: list(states().values()) == [COMPLETE] * 2)
    ids = {e.external_id: e.id for e in store.client.get_executions()}

    async def labels(played, step):
        name = played._load(step, "pod")["metadata"]["name"]
        return (await cluster.client.get(PODS, name, namespace=cluster.namespace))["metadata"]

    await eventually(lambda: "memopod_writer_pods_marked_total 2.0" in writer.ask("/metrics")[1])
    use = await labels(workflow, "use")
    assert use["labels"]["pipelines.kubeflow.org/metadata_execution_id"] == str(
        ids[workflow.execution("use")]
    )
    inputs = json.loads(use["annotations"]["pipelines.kubeflow.org/metadata_input_artifact_ids"])
    assert [i["name"] for i in inputs] == ["default", "keyed", "full"]
    assert use["labels"]["pipelines.kubeflow.org/metadata_written"] == "true"
    writer.kill()
    again = start_writer()
    await eventually(lambda: "steps_unchanged_total 2.0" in (again.ask("/metrics") or ("", ""))[1])
    assert "memopod_writer_pods_marked_total 0.0" in again.ask("/metrics")[1]


async def test_of_two_replicas_one_writes_and_the_other_takes_over(
    cluster, store, start_writer, eventually, states
):
    election = ("--leader-elect=on", f"--lease-namespace={cluster.namespace}")
    first = start_writer(*election)
    await eventually(lambda: first.ready() and json.loads(first.ask("/status")[1])["shards"]["led"] == [0])
    second = start_writer(*election)
    await eventually(second.ready)
    workflow = await cluster.submit("argo-4.1.2", "parameters")
    await workflow.run("make")
    await eventually(lambda: states() == {workflow.execution("make"): COMPLETE})
    assert json.loads(second.ask("/status")[1])["shards"]["led"] == []
    assert "steps_recorded_total{" not in second.ask("/metrics")[1]
    first.kill()
    await workflow.run("use")
    await eventually(lambda: len(states()) == 2)
    (lease,) = (await cluster.client.list(LEASES, namespace=cluster.namespace))["items"]
    assert lease["metadata"]["name"] == "memopod-metadata-writer"


async def test_a_start_over_recorded_steps_looks_at_each_once(cluster, start_writer, eventually, states):
    writer = start_writer()
    workflow = await cluster.submit("argo-4.1.2", "artifacts")
    await workflow.run("make", "use")  # which reads a file that no step made, too
    await workflow.end()
    await eventually(lambda: states() == dict.fromkeys(map(workflow.execution, ("make", "use")), COMPLETE))
    writer.terminate()
    again = start_writer()

    def settled():
        status = json.loads((again.ask("/status") or (0, "{}"))[1])
        return (status.get("steps_seen"), status.get("steps_unsettled")) == (2, 0)

    await eventually(settled)
    metrics = again.ask("/metrics")[1]
    assert "memopod_writer_steps_unchanged_total 2.0" in metrics
    assert "memopod_writer_steps_recorded_total{" not in metrics
    assert "memopod_writer_fetches_total{" not in metrics


async def test_a_replica_that_stands_by_keeps_only_what_the_store_does_not_have(
    cluster, store, start_writer, eventually, states
):
    election = ("--leader-elect=on", f"--lease-namespace={cluster.namespace}", "--label-pods=on")
    leader = start_writer(*election)
    await eventually(lambda: leader.ready() and json.loads(leader.ask("/status")[1])["shards"]["led"] == [0])
    follower = start_writer(*election)
    await eventually(follower.ready)
    ended = await cluster.submit("argo-4.1.2", "artifacts")
    await ended.run("make", "use")
    await ended.end()
    running = await cluster.submit("argo-4.1.2", "parameters")
    await running.create("make")
    await running.begin("make")
    await eventually(lambda: len(states()) == 3)

    def of_follower(name):
        return json.loads(follower.ask("/status")[1])[name]

    await eventually(lambda: (of_follower("steps_seen"), of_follower("steps_unsettled")) == (3, 1))
    assert of_follower("parked") == 1
    leader.process.send_signal(signal.SIGSTOP)  # what it does not write any more its follower keeps
    await running.report("make")
    await running.finish("make")
    await running.end()
    await running.delete_pods("make")
    await running.delete()
    await eventually(lambda: states()[running.execution("make")] == COMPLETE, seconds=40)
    assert of_follower("shards")["led"] == [0]
    await eventually(lambda: of_follower("steps_unsettled") == 0)


async def test_it_waits_for_a_store_that_is_away_and_loses_nothing(
    cluster, store, start_writer, eventually, states
):
    store.kill()
    writer = start_writer()
    await eventually(lambda: writer.ask("/readyz") == (503, "not ready: the store answers\n"))
    assert writer.ask("/healthz") == (200, "ok\n")
    workflow = await cluster.submit("argo-4.1.2", "artifacts")
    await workflow.run("make")
    await asyncio.to_thread(store.start)
    await eventually(lambda: states() == {workflow.execution("make"): COMPLETE})
    await eventually(writer.ready)
    store.kill()
    await workflow.run("use")
    await workflow.end()
    await workflow.delete_pods("make", "use")
    await asyncio.to_thread(store.start)
    await eventually(lambda: list(states().values()) == [COMPLETE, COMPLETE])
    graph = store.graph()
    assert set(graph["nodes"].values()) == {1}
    assert set(graph["edges"].values()) == {1}


async def test_sigterm_records_what_is_queued_and_ends(cluster, start_writer, eventually, states):
    writer = start_writer()
    await eventually(writer.ready)
    workflow = await cluster.submit("argo-4.1.2", "parameters")
    await workflow.run("make")
    await eventually(lambda: states() == {workflow.execution("make"): COMPLETE})
    metrics = writer.ask("/metrics")[1]
    assert 'memopod_writer_steps_recorded_total{state="COMPLETE"} 1.0' in metrics
    assert await asyncio.to_thread(writer.terminate) == 0


async def test_a_store_address_without_a_port_is_refused(start_writer):
    writer = start_writer("--store=nowhere")
    assert await asyncio.to_thread(writer.process.wait, 20) == 2
    assert "expected HOST:PORT" in writer.log.read_text()


def structure(store):
    """The graph without the facts that only a Pod knows."""
    graph = store.graph()
    return {"nodes": Counter({node[:-1]: n for node, n in graph["nodes"].items()}), "edges": graph["edges"]}


async def keep_killing(start_writer, eventually, stop, seed, killed):
    """Writers that live for moments after they are ready, until `stop`; the last one is left alone."""
    moments = random.Random(seed)
    while not stop.is_set():
        writer = start_writer()
        await eventually(lambda: writer.ready() or stop.is_set())  # noqa: B023 (awaited here)
        await asyncio.sleep(moments.uniform(0, 0.4))
        writer.kill()
        killed.append(writer)
    start_writer()


@pytest.mark.parametrize("store", [3], indirect=True, ids=["three workers"])
async def test_a_writer_that_is_killed_again_and_again_records_what_a_calm_one_records(
    cluster, store, start_writer, eventually, tmp_path
):
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    other = type(store)(other_folder)
    await asyncio.to_thread(other.start)
    stop = asyncio.Event()
    try:
        calm = start_writer(store=other)
        await eventually(calm.ready)
        killed = []
        killer = asyncio.create_task(
            keep_killing(start_writer, eventually, stop, seed=4, killed=killed), name="kill writers"
        )
        for number, (sample, steps) in enumerate(
            [
                ("parameters", ["make", "use"]),
                ("artifacts", ["make", "use"]),
                ("script", ["s", "use"]),
                ("retry", ["0", "1"]),
            ]
        ):
            for version in ("argo-3.5.15", "argo-4.1.2"):
                workflow = await cluster.submit(version, sample)
                for step in steps:
                    await workflow.run(step)
                    await asyncio.sleep(0.3)  # so that kills fall everywhere in a workflow's life
                await workflow.end()
                if number % 2:
                    await workflow.delete_pods(*steps)
            await eventually(lambda: len(killed) > number, seconds=60)  # noqa: B023 (awaited here)
        stop.set()
        await killer
        await eventually(lambda: len(other.client.get_executions()) == 16, seconds=30)
        await eventually(lambda: structure(store) == structure(other), seconds=40)
        graph = store.graph()
        assert set(graph["nodes"].values()) == {1}
        assert set(graph["edges"].values()) == {1}
        assert len(store.client.get_artifacts()) == 6
    finally:
        stop.set()
        other.kill()
