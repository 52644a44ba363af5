"""The leader dies at each of its calls in turn: what it leaves is reused whole, or runs as written.

Another leader, a sweeper and the janitor meet what is left, each under its own account; Argo is played
with either of its two watches late, for a version that waits for declared outputs and one that does not.
"""

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import jsonpatch
import pytest
from typer.testing import CliRunner

from cache_server.admission import Policy, admit
from cache_server.artifacts import Artifacts
from cache_server.controller import Controller
from cache_server.decision import Decider, DecisionRules
from cache_server.entries import open_entries
from cache_server.executions import Executions
from cache_server.finish import is_held
from cache_server.identity import Identifier
from cache_server.namespaces import Namespaces
from cache_server.recorder import Recorder
from cache_server.sweeper import Sweeper
from cache_server.waiting import WaitRules
from memopod.cli.cache import app
from memopod.kube import Client
from memopod.steps import names
from memopod.steps.key import KeyRules
from tests.real.argo import Step
from tests.real.cluster import until

SECRET = b"s" * 32
CREATOR = "system:serviceaccount:argo:argo"
HOLD, MARGIN, CLAIM_WAIT = 3.0, 1.0, 2.0
"""Seconds: as in a cluster, the first two shorter. A claim waits longer than the last look at a Pod and the
write that follows it may take.
"""

CALLS = [
    # method and what it is about: every call that a hit makes of the API server, in order
    ("GET", "workflowtaskresults"),
    ("GET", "pods"),
    ("POST", "workflowtaskresults"),
    ("PATCH", "status"),
    ("POST", "events"),
]
WRITES = [call for call in CALLS if call[0] != "GET"]
SURVIVORS = ("leader", "sweeper", "janitor")


class Mortal(Client):
    """The real client of a process that can die at one of its calls, before or after it is carried out."""

    point = None
    after = False
    dead = False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls, self.answered = [], []

    async def _call(self, method, path, **arguments):
        what = path.rpartition("/")[2] if method != "GET" else path.split("/")[-2]
        here = (method, what) == self.point
        self.calls.append((method, what))
        if self.dead or (here and not self.after):
            await self._die()
        try:
            answer = await super()._call(method, path, **arguments)
            self.answered.append((method, what))
            return answer
        finally:
            if self.dead or here:
                await self._die()

    async def _die(self):
        self.dead = True
        await asyncio.Event().wait()


@dataclass
class Stage:
    """What all processes of one test share."""

    cluster: object
    entries: object
    policy: Policy

    def held(self, pod):
        """As the webhook holds it."""
        verdict = admit(
            pod, namespace=self.cluster.pipelines, username=CREATOR, now=datetime.now(UTC),
            controller_alive=True, policy=self.policy,
        )  # fmt: skip
        assert verdict.held, verdict.reason
        pod.update(jsonpatch.apply_patch(pod, verdict.patch))

    async def process(self):
        """Controller and recorder of a process of its own, under the cache server's account."""
        client = await self.cluster.client("cache-server", kind=Mortal)
        artifacts = Artifacts({})
        identifier = Identifier(client, artifacts, self.entries, KeyRules())
        rules = DecisionRules(secret=SECRET, check="off", timeout=5.0)
        decider = Decider(identifier, self.entries, artifacts, Namespaces(client), rules)

        def leads():
            return not client.dead

        controller = Controller(
            client, decider, self.entries, Executions(WaitRules()), leads=leads, settle_time=0.5,
            late_margin=MARGIN, concurrency=4,
        )  # fmt: skip
        recorder = Recorder(
            client, identifier, self.entries, artifacts, decider, KeyRules(), leads=leads, concurrency=4
        )
        return client, controller, recorder

    async def pod_of(self, run):
        await run.until(lambda: run.pods.get("make"), "the Pod exists")
        return await self.cluster.pod(run.pod_name())


@pytest.fixture
async def stage(cluster):
    async with open_entries(f"sqlite:///{cluster.folder / 'cache.db'}", call_timeout=20.0) as entries:
        policy = Policy(secret=SECRET, trusted_creators=frozenset({CREATOR}), hold_seconds=HOLD)
        yield Stage(cluster, entries, policy)


def own_outputs(pod):
    """Each run puts out the name of its own Pod: a mixture of two runs would show."""
    value = pod["metadata"]["name"]
    return {"parameters": [{"name": "Output", "value": value, "valueFrom": {"path": "/tmp/o"}}]}


async def record_first_run(stage, argo):
    _, controller, recorder = await stage.process()
    run = await argo.submit(Step(change=stage.held))
    pod = await stage.pod_of(run)
    controller.see(pod)
    assert await run.end() == "Succeeded"
    recorder.see(await stage.cluster.pod(run.pod_name()))
    await recorder.drain(20.0)
    [entry] = await stage.entries.list(stage.cluster.pipelines)
    return entry


async def left_by_a_dead_leader(stage, run, point, *, after):
    """The Pod as a leader left it that died at that call; also whether its result was written.

    The leader is asked that: Argo deletes the result as soon as the workflow has ended, as it has where
    the leader died after it had finished the Pod.
    """
    client, controller, _ = await stage.process()
    client.point, client.after = point, after
    controller.see(await stage.pod_of(run))
    await until(lambda: client.dead, f"the leader dies at {point}")
    return controller, ("POST", "workflowtaskresults") in client.answered


async def take_up(stage, stack, run, survivor):
    """Let somebody else meet what was left, until the Pod is held no more."""
    name = run.pod_name()
    if survivor == "leader":
        _, controller, _ = await stage.process()
        controller.see(await stage.cluster.pod(name))
        stack.push_async_callback(controller.drain, 0.0)
    else:
        account, grace = ("cache-server", 0.0) if survivor == "sweeper" else ("janitor", 0.5)
        client = await stage.cluster.client(account)
        sweeper = Sweeper(client, identity=survivor, claim_wait=CLAIM_WAIT, grace=grace)
        stack.push_async_callback(sweeper.drain, 0.0)

    async def let_go():
        pod = await stage.cluster.pod(name)
        if survivor != "leader":
            sweeper.sweep([pod])
        return not is_held(pod)

    await until(let_go, f"{survivor} lets {name} go")


async def one_case(stage, stack, argo, point, *, after, survivor):
    run = await argo.submit(Step(change=stage.held))
    dead, written = await left_by_a_dead_leader(stage, run, point, after=after)
    stack.push_async_callback(dead.drain, 0.0)
    await take_up(stage, stack, run, survivor)
    assert await run.end() == "Succeeded"
    return run, written


@pytest.mark.parametrize("late", ["pod_lag", "result_lag"])
@pytest.mark.parametrize("version", ["3.5.15", "4.1.2"])
async def test_wherever_the_leader_dies_the_step_is_reused_whole_or_runs_as_written(
    stage, play, version, late
):
    argo, kubelet = await play(version=version, outputs=own_outputs, **{late: 0.2})
    entry = await record_first_run(stage, argo)
    cases = [(point, after, survivor) for point in CALLS for after in (False, True) for survivor in SURVIVORS]
    async with AsyncExitStack() as stack:
        ends = await asyncio.gather(
            *(one_case(stage, stack, argo, point, after=after, survivor=who) for point, after, who in cases)
        )
        for (point, after, survivor), (run, written) in zip(cases, ends, strict=True):
            case = f"{point} {'after' if after else 'before'}, then {survivor}"
            pod = await stage.cluster.pod(run.pod_name())
            parameters = run.nodes["make"].outputs.get("parameters", [])
            values = [parameter["value"] for parameter in parameters]
            if run.pod_name() in kubelet.ran:
                # Argo 3.5 itself loses the outputs of a Pod that ran when its watch of them is late.
                lost = version == "3.5.15" and late == "result_lag"
                assert values == [run.pod_name()] or (lost and not values), case
                assert pod["metadata"]["labels"][names.STEP_LABEL] == names.RELEASED, case
                assert not written, case
            else:
                assert values == [entry.pod_name], case
                assert pod["metadata"]["labels"][names.STEP_LABEL] == names.REUSED, case
                assert written or survivor == "leader", case
                assert "nodeName" not in pod["spec"], case


async def test_a_hit_is_two_writes_and_an_event(stage, play):
    argo, _ = await play(outputs=own_outputs)
    await record_first_run(stage, argo)
    client, controller, _ = await stage.process()
    run = await argo.submit(Step(change=stage.held))
    controller.see(await stage.pod_of(run))
    assert await run.end() == "Succeeded"
    await controller.drain(20.0)
    assert [call for call in client.calls if call[0] != "GET"] == WRITES


async def test_a_miss_is_one_write(stage, play):
    argo, _ = await play(outputs=own_outputs)
    client, controller, _ = await stage.process()
    run = await argo.submit(Step(change=stage.held))
    controller.see(await stage.pod_of(run))
    assert await run.end() == "Succeeded"
    await controller.drain(20.0)
    assert [method for method, _ in client.calls if method != "GET"] == ["PATCH"]


async def test_release_by_hand_finishes_what_must_be_finished_and_lets_all_others_run(stage, play):
    argo, kubelet = await play(outputs=own_outputs)
    entry = await record_first_run(stage, argo)
    async with AsyncExitStack() as stack:
        runs = [await argo.submit(Step(change=stage.held)) for _ in range(3)]
        for run, after in zip(runs, (True, False), strict=False):
            point = ("POST", "workflowtaskresults")
            dead, _ = await left_by_a_dead_leader(stage, run, point, after=after)
            stack.push_async_callback(dead.drain, 0.0)
        await stage.pod_of(runs[2])
        kubeconfig = str(stage.cluster.plane / "kubeconfig")
        command = ["release", "--kubeconfig", kubeconfig, "--namespace", stage.cluster.pipelines, "--json"]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        assert result.exit_code == 0, result.output
        done = {line["pod"]: line["action"] for line in json.loads(result.stdout)}
        assert done == {
            runs[0].pod_name(): "finished", runs[1].pod_name(): "released", runs[2].pod_name(): "released",
        }  # fmt: skip
        assert [await run.end() for run in runs] == ["Succeeded"] * 3
    values = [run.nodes["make"].outputs["parameters"][0]["value"] for run in runs]
    assert values == [entry.pod_name, runs[1].pod_name(), runs[2].pod_name()]
    assert set(kubelet.ran) == {entry.pod_name, runs[1].pod_name(), runs[2].pod_name()}
