import asyncio
import json
import sqlite3
from contextlib import closing

import jsonpatch
import msgspec
import pytest
import structlog

from cache_server.admission import Policy
from cache_server.completion import Completer
from cache_server.placeholder import PlaceholderRules, cache_id, placeholders
from cache_server.review import AdmissionRequest, PodText, Resource, User
from memopod.kube import EVENTS, PODS, TASK_RESULTS
from memopod.steps import names, read_step

SECRET = b"s" * 32
CREATOR = "system:serviceaccount:argo:argo"
NAMESPACE = "pipelines"
POLICY = Policy(secret=SECRET, trusted_creators=frozenset({CREATOR}), hold_seconds=30.0)
OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}


class Placeholders:
    """Placeholder mode over real entries and the sandbox's API server."""

    def __init__(self, cluster, parts):
        self.cluster = cluster
        self.parts = parts
        self.completes = True
        self.timeout = 30.0
        self.counted = []

    def count(self, **counted):
        self.counted.append(counted)

    async def judge(self, pod, *, dry_run=False):
        rules = PlaceholderRules(image="busybox", keeps_node_restrictions=False, timeout=self.timeout)
        judge = placeholders(POLICY, self.parts.decider, lambda: self.completes, rules, count=self.count)
        request = AdmissionRequest(
            uid="1", resource=Resource("", "v1", "pods"), namespace=NAMESPACE, userInfo=User(CREATOR),
            object=msgspec.json.decode(msgspec.json.encode(pod), type=PodText), dryRun=dry_run,
        )  # fmt: skip
        return await judge(request)

    async def admit(self, pod):
        return jsonpatch.apply_patch(pod, (await self.judge(pod)).patch)

    async def create(self, **arguments):
        pod = self.cluster.pod_of(await self.cluster.workflow(), **arguments)
        return await self.cluster.client.create(PODS, await self.admit(pod), namespace=NAMESPACE)

    async def recorded(self, outputs=OUTPUTS, **arguments):
        """A first run of the step, as an entry."""
        entry = await self.parts.record(await self.cluster.run(await self.create(**arguments), outputs))
        assert entry is not None
        return entry

    def completer(self):
        return Completer(
            self.cluster.client, self.parts.entries, secret=SECRET, leads=lambda: self.parts.leading,
            concurrency=4, count=lambda **counted: self.counted.append(counted),
        )  # fmt: skip

    async def complete(self, pod):
        completer = self.completer()
        completer.see(pod)
        await completer.drain(30.0)
        return await self.cluster.get(pod)


@pytest.fixture
def mode(cluster, parts):
    return Placeholders(cluster, parts)


async def test_a_step_that_runs_is_marked_for_the_recorder_and_becomes_an_entry(mode):
    pod = await mode.create()
    metadata = pod["metadata"]
    assert metadata["labels"][names.STEP_LABEL] == names.RELEASED
    assert metadata["annotations"][names.REASON] == "miss"
    assert len(metadata["annotations"][names.KFP_CACHE_KEY]) == 64
    entry = await mode.parts.record(await mode.cluster.run(pod, OUTPUTS))
    assert entry.outputs.parameters == {"Output": "hello"}
    completer = mode.completer()
    completer.recorded(pod, entry)
    await completer.drain(30.0)
    labels = (await mode.cluster.get(pod))["metadata"]["labels"]
    assert labels == {**metadata["labels"], names.KFP_CACHE_ID: str(cache_id(entry.id))}


async def test_the_second_run_is_swapped_and_gets_the_result_that_argo_waits_for(mode):
    entry = await mode.recorded()
    pod = await mode.create()
    assert [c["image"] for c in pod["spec"]["containers"]] == ["busybox"]
    assert "initContainers" not in pod["spec"]
    assert pod["metadata"]["labels"][names.STEP_LABEL] == names.PLACEHOLDER
    assert pod["metadata"]["labels"][names.KFP_CACHE_ID] == str(cache_id(entry.id))
    assert read_step(pod).reused
    done = await mode.complete(pod)
    assert done["metadata"]["labels"][names.STEP_LABEL] == names.REUSED
    result = await mode.cluster.result(pod)
    assert result["metadata"]["labels"][names.ARGO_OUTPUTS_COMPLETED] == "true"
    assert result["outputs"]["parameters"][0]["value"] == "hello"
    assert result["metadata"]["annotations"][names.SOURCE_POD] == entry.pod_name
    assert (await mode.parts.entries.get(entry.id)).uses == 1
    assert mode.counted == [
        {"namespace": NAMESPACE, "template": entry.template_name, "reason": "miss", "entry_id": ""},
        {"namespace": NAMESPACE, "template": entry.template_name, "reason": "hit", "entry_id": entry.id},
    ]
    events = (await mode.cluster.client.list(EVENTS, namespace=NAMESPACE))["items"]
    assert [
        event["reason"] for event in events if event["involvedObject"]["uid"] == pod["metadata"]["uid"]
    ] == ["Reused"]


async def test_a_dry_run_takes_no_entry_back_and_counts_nothing(mode, monkeypatch):
    entry = await mode.recorded()
    pod = mode.cluster.pod_of(await mode.cluster.workflow())
    mode.counted.clear()

    async def gone(_step, _entry):
        return "outputs-gone"

    monkeypatch.setattr(mode.parts.decider, "_check", gone)
    assert (await mode.judge(pod, dry_run=True)).reason == "outputs-gone"
    assert await mode.parts.entries.get(entry.id) is not None
    assert mode.counted == []
    assert (await mode.judge(pod)).reason == "outputs-gone"
    assert await mode.parts.entries.get(entry.id) is None


async def test_a_placeholder_is_never_recorded_as_a_run(mode):
    await mode.recorded()
    pod = await mode.create()
    ran = await mode.cluster.run(pod, OUTPUTS)
    assert await mode.parts.record(ran) is None


async def test_completing_twice_is_completing_once(mode):
    entry = await mode.recorded()
    pod = await mode.create()
    await mode.complete(pod)
    await mode.complete(pod)
    assert (await mode.cluster.get(pod))["metadata"]["labels"][names.STEP_LABEL] == names.REUSED
    assert (await mode.cluster.result(pod))["metadata"]["labels"][names.ENTRY] == entry.id


async def test_a_pod_that_only_looks_like_a_placeholder_gets_no_result(mode):
    await mode.recorded()
    pod = await mode.admit(mode.cluster.pod_of(await mode.cluster.workflow()))
    forged = json.loads(pod["metadata"]["annotations"][names.ARGO_OUTPUTS])
    forged["parameters"][0]["value"] = "forged"
    pod["metadata"]["annotations"][names.ARGO_OUTPUTS] = json.dumps(forged)
    pod = await mode.cluster.client.create(PODS, pod, namespace=NAMESPACE)
    with structlog.testing.capture_logs() as logs:
        await mode.complete(pod)
    assert await mode.cluster.result(pod) is None
    assert [line["reason"] for line in logs if "no result" in line["event"]] == ["forged"]


async def test_a_result_of_somebody_else_is_left_alone(mode):
    await mode.recorded()
    pod = await mode.create()
    await mode.cluster.report(pod, {"parameters": []})
    with structlog.testing.capture_logs() as logs:
        await mode.complete(pod)
    assert names.ENTRY not in (await mode.cluster.result(pod))["metadata"]["labels"]
    assert [line["reason"] for line in logs if "no result" in line["event"]] == ["foreign"]


async def test_a_result_for_an_earlier_workflow_of_the_same_name_is_not_taken_for_the_steps_own(mode):
    entry = await mode.recorded()
    pod = await mode.create()
    earlier = json.loads(json.dumps(pod))
    earlier["metadata"]["ownerReferences"][0]["uid"] = "00000000-0000-0000-0000-000000000000"
    theirs = await mode.cluster.report(earlier, {"parameters": []}, **{names.ENTRY: entry.id})
    await mode.complete(pod)
    assert (await mode.cluster.get(pod))["metadata"]["labels"][names.STEP_LABEL] == names.PLACEHOLDER
    await mode.cluster.client.delete(TASK_RESULTS, theirs["metadata"]["name"], namespace=NAMESPACE)
    await mode.complete(pod)
    assert (await mode.cluster.get(pod))["metadata"]["labels"][names.STEP_LABEL] == names.REUSED
    assert (await mode.cluster.result(pod))["outputs"]["parameters"]


async def test_when_nobody_can_write_results_a_step_that_needs_one_runs(mode):
    await mode.recorded()
    mode.completes = False
    pod = await mode.create()
    assert pod["metadata"]["annotations"][names.REASON] == "no-controller"
    assert pod["metadata"]["labels"][names.STEP_LABEL] == names.RELEASED
    assert len(pod["spec"]["containers"]) > 1


async def test_called_again_a_placeholder_stays_one(mode):
    await mode.recorded()
    once = await mode.admit(mode.cluster.pod_of(await mode.cluster.workflow()))
    verdict = await mode.judge(once)
    assert (verdict.reason, verdict.patch) == ("hit", [])


async def test_the_placeholder_satisfies_the_restricted_profile_and_what_was_asked_of_the_step(mode):
    await mode.recorded()

    def limit(pod):
        for container in pod["spec"]["containers"]:
            container["resources"] = {"limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "1"}}

    pod = await mode.create(change=limit)
    (container,) = pod["spec"]["containers"]
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True,
        "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container["resources"] == {
        "requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "1Gi"},
    }  # fmt: skip


async def test_a_user_that_the_platform_chose_stays(mode):
    await mode.recorded(change=lambda pod: pod["spec"].update(securityContext={"runAsUser": 1000}))
    pod = await mode.create(change=lambda pod: pod["spec"].update(securityContext={"runAsUser": 1000}))
    (container,) = pod["spec"]["containers"]
    assert "runAsUser" not in container["securityContext"]


async def test_the_order_is_kubeflows_and_nothing_stays_that_names_a_lost_container(mode):
    await mode.recorded()
    apparmor = "container.apparmor.security.beta.kubernetes.io"

    def place(pod):
        pod["spec"] |= {"affinity": {"nodeAffinity": {}}, "nodeSelector": {"disk": "ssd"}}
        pod["metadata"]["annotations"] |= {f"{apparmor}/init": "unconfined", f"{apparmor}/main": "unconfined"}

    verdict = await mode.judge(mode.cluster.pod_of(await mode.cluster.workflow(), change=place))
    assert [(op["op"], op["path"]) for op in verdict.patch] == [
        ("replace", "/spec/containers"),
        ("remove", "/spec/affinity"),
        ("remove", "/spec/nodeSelector"),
        ("remove", "/spec/initContainers"),
        ("add", "/metadata/annotations"),
        ("add", "/metadata/labels"),
    ]
    assert all("value" not in op for op in verdict.patch if op["op"] == "remove")
    annotations = verdict.patch[4]["value"]
    assert f"{apparmor}/main" in annotations
    assert f"{apparmor}/init" not in annotations


async def test_marks_that_the_creator_put_on_the_pod_do_not_stay(mode):
    def forge(pod):
        pod["metadata"]["labels"] |= {names.KFP_CACHE_ID: "7", names.KFP_REUSED: "true"}
        pod["metadata"]["annotations"] |= {names.ENTRY: "x", names.SOURCE_POD: "y"}

    pod = await mode.create(change=forge)
    assert pod["metadata"]["labels"][names.KFP_CACHE_ID] == ""
    assert names.KFP_REUSED not in pod["metadata"]["labels"]
    assert not {names.ENTRY, names.SOURCE_POD} & set(pod["metadata"]["annotations"])


async def test_a_look_up_past_its_deadline_is_a_miss(mode, monkeypatch):
    await mode.recorded()
    mode.timeout = 0.05

    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(mode.parts.entries, "find", never)
    pod = await mode.create()
    assert pod["metadata"]["annotations"][names.REASON] == "decision-timeout"
    assert pod["metadata"]["labels"][names.STEP_LABEL] == names.RELEASED


async def test_a_database_that_is_gone_is_a_miss(mode):
    await mode.recorded()
    with closing(sqlite3.connect(mode.cluster.state / "cache.db")) as database:
        database.execute("DROP TABLE entries")
    pod = await mode.create()
    assert pod["metadata"]["annotations"][names.REASON] == "entries-unavailable"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pod: pod["metadata"]["annotations"].update({names.BYPASS: "true"}), "bypass"),
        (lambda pod: pod["metadata"]["annotations"].update({names.MAX_STALENESS: "P0D"}), "disabled"),
    ],
    ids=["bypass", "disabled"],
)
async def test_a_step_can_ask_to_run(mode, change, reason):
    await mode.recorded()
    pod = await mode.create(change=change)
    assert pod["metadata"]["annotations"][names.REASON] == reason


async def test_a_step_without_key_is_told_why_and_not_recorded(mode):
    def mount(pod):
        pod["spec"]["volumes"].append({"name": "v", "hostPath": {"path": "/"}})
        pod["spec"]["containers"][1]["volumeMounts"].append({"name": "v", "mountPath": "/v"})

    pod = await mode.create(change=mount)
    assert pod["metadata"]["annotations"][names.REASON] == "volume"
    assert pod["metadata"]["labels"][names.KFP_CACHE_ID] == ""
    assert names.STEP_LABEL not in pod["metadata"]["labels"]
    assert names.SEAL not in pod["metadata"]["annotations"]


async def test_outputs_that_do_not_fit_into_the_pods_annotations_are_a_miss(mode):
    await mode.recorded({"parameters": [{"name": "Output", "value": "x" * 250_000}]})
    pod = await mode.create()
    assert pod["metadata"]["annotations"][names.REASON] == "outputs-too-large"


async def test_a_dead_leader_leaves_placeholders_to_the_next_one(mode):
    await mode.recorded()
    pod = await mode.create()
    mode.parts.leading = False
    await mode.complete(pod)
    assert await mode.cluster.result(pod) is None
    mode.parts.leading = True
    await mode.complete(await mode.cluster.get(pod))
    assert (await mode.cluster.result(pod))["outputs"]
