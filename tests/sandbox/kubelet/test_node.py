import asyncio

import pytest

from memopod.kube import CONFIG_MAPS, EVENTS, PODS, SECRETS, WORKFLOWS
from memopod.sandbox.argo import build_pod

OUT = "/memopod/outputs/parameters/out"


@pytest.fixture
async def create(cluster):
    """Creates the Pod of a step that runs a shell script; keywords change the Pod's spec."""
    workflow = await cluster.client.create(
        WORKFLOWS, {"metadata": {"name": "wf"}, "spec": {}}, namespace="pipelines"
    )

    async def make(script, *, outputs=None, env=(), inputs=None, **spec):
        template = {
            "name": "step",
            "inputs": inputs or {},
            "outputs": outputs or {},
            "metadata": {},
            "container": {
                "name": "",
                "image": "busybox:1",
                "command": ["sh", "-c", script],
                "env": list(env),
                "resources": {},
            },
        }
        pod = build_pod(workflow, "wf.step", template, trace_id="t", span_id="s")
        pod["spec"].update(spec)
        return await cluster.client.create(PODS, pod, namespace="pipelines")

    return make


async def finished(cluster, pod):
    async def ended():
        found = await cluster.client.get(PODS, pod["metadata"]["name"], namespace="pipelines")
        return found if found["status"]["phase"] in {"Succeeded", "Failed"} else None

    return await cluster.until(ended)


def log_of(cluster, pod):
    path = cluster.state / "pods" / pod["metadata"]["uid"] / "main.log"
    return path.read_text() if path.exists() else ""


def terminated(pod, name):
    statuses = {s["name"]: s["state"] for s in pod["status"]["containerStatuses"]}
    return statuses[name]["terminated"]


async def test_a_pod_runs_and_is_reported_as_kubernetes_does(cluster, create):
    cluster.start_kubelet()
    pod = await finished(cluster, await create("echo hello"))
    assert pod["spec"]["nodeName"] == "sandbox"
    assert pod["status"]["phase"] == "Succeeded"
    assert terminated(pod, "main")["exitCode"] == terminated(pod, "wait")["exitCode"] == 0
    (init,) = pod["status"]["initContainerStatuses"]
    assert init["state"]["terminated"]["reason"] == "Completed"
    assert all(s["containerID"] for s in pod["status"]["containerStatuses"])
    assert log_of(cluster, pod) == "hello\n"


async def test_the_result_is_created_incomplete_and_completed_at_the_end(cluster, create, tmp_path):
    cluster.start_kubelet()
    outputs = {"parameters": [{"name": "out", "valueFrom": {"path": OUT}}]}
    script = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo value > {OUT}"
    pod = await create(script, outputs=outputs)
    (first,) = await cluster.until(cluster.results)
    label = "workflows.argoproj.io/report-outputs-completed"
    assert (first["metadata"]["labels"][label], first.get("outputs")) == ("false", None)
    assert first["metadata"]["ownerReferences"][0]["kind"] == "Workflow"
    (tmp_path / "go").touch()
    await finished(cluster, pod)
    (last,) = await cluster.results()
    assert last["metadata"]["labels"][label] == "true"
    assert last["outputs"] == {"parameters": [{"name": "out", "value": "value", "valueFrom": {"path": OUT}}]}


async def test_a_gated_pod_is_never_started_until_its_gate_is_lifted(cluster, create):
    cluster.start_kubelet()
    held = await create("echo ran", schedulingGates=[{"name": "memopod.io/decide"}])
    other = {**held, "metadata": {**held["metadata"], "name": "other"}, "spec": {**held["spec"]}}
    del other["spec"]["schedulingGates"]
    for field in ("uid", "resourceVersion", "creationTimestamp"):
        del other["metadata"][field]
    # The other one, created later, has run through: the held one had its chance.
    await finished(cluster, await cluster.client.create(PODS, other, namespace="pipelines"))
    name = held["metadata"]["name"]
    now = await cluster.client.get(PODS, name, namespace="pipelines")
    assert (now["status"]["phase"], now["spec"].get("nodeName")) == ("Pending", None)
    assert not (cluster.state / "pods" / held["metadata"]["uid"]).exists()
    lift = [{"op": "remove", "path": "/spec/schedulingGates"}]
    await cluster.client.patch(PODS, name, lift, namespace="pipelines")
    assert (await finished(cluster, held))["status"]["phase"] == "Succeeded"


async def test_values_come_from_fields_configmaps_and_secrets(cluster, create):
    cluster.start_kubelet()
    await cluster.client.create(
        CONFIG_MAPS, {"metadata": {"name": "m"}, "data": {"k": "blue"}}, namespace="pipelines"
    )
    await cluster.client.create(
        SECRETS, {"metadata": {"name": "s"}, "data": {"k": "czNjcmV0"}}, namespace="pipelines"
    )
    env = [
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    pod = await finished(cluster, await create("echo $NAME $COLOUR $TOKEN", env=env))
    assert log_of(cluster, pod) == f"{pod['metadata']['name']} blue s3cret\n"


async def test_a_configmap_that_is_not_there_fails_the_pod_with_its_name(cluster, create):
    cluster.start_kubelet()
    env = [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}]
    pod = await finished(cluster, await create("true", env=env))
    assert pod["status"]["phase"] == "Failed"
    assert "there is no key 'k' in ConfigMap 'gone'" in pod["status"]["message"]


async def test_a_missing_output_fails_the_pod_though_its_program_succeeded(cluster, create):
    cluster.start_kubelet()
    outputs = {"parameters": [{"name": "out", "valueFrom": {"path": OUT}}]}
    pod = await finished(cluster, await create("true", outputs=outputs))
    assert pod["status"]["phase"] == "Failed"
    assert (terminated(pod, "main")["exitCode"], terminated(pod, "wait")["exitCode"]) == (0, 64)
    assert "did not write its output parameter 'out'" in terminated(pod, "wait")["message"]


async def test_an_sdk_components_single_output_file_is_read(cluster, create):
    cluster.start_kubelet()
    outputs = {"parameters": [{"name": "out", "valueFrom": {"path": OUT}}]}
    written = '{"parameterValues": {"out": [1, 2]}}'
    script = f"echo '{written}' > /memopod/outputs/executor_output.json"
    await finished(cluster, await create(script, outputs=outputs))
    (result,) = await cluster.results()
    assert result["outputs"]["parameters"][0]["value"] == "[1,2]"


async def test_an_input_artifact_that_is_gone_fails_the_pod_before_it_starts(cluster, create):
    cluster.start_kubelet()
    location = {"s3": {"endpoint": "minio.sandbox:9000", "bucket": "pipelines", "key": "no/such"}}
    artifact = {"name": "data", "path": "/memopod/inputs/artifacts/data", "archive": {"none": {}}, **location}
    pod = await finished(cluster, await create("echo ran", inputs={"artifacts": [artifact]}))
    assert pod["status"]["reason"] == "StartError"
    assert "there is no artifact at minio://pipelines/no/such" in pod["status"]["message"]
    assert log_of(cluster, pod) == ""


async def test_a_deadline_ends_the_step(cluster, create):
    cluster.start_kubelet()
    pod = await finished(cluster, await create("sleep 1000", activeDeadlineSeconds=1))
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")


async def test_a_pod_that_ran_when_the_kubelet_died_is_reported_lost(cluster, create):
    cluster.start_kubelet()
    pod = await create("sleep 1000")

    async def running():
        found = await cluster.client.get(PODS, pod["metadata"]["name"], namespace="pipelines")
        return found["status"]["phase"] == "Running"

    await cluster.until(running)
    await cluster.kill_kubelet()
    cluster.start_kubelet()
    pod = await finished(cluster, pod)
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "NodeLost")
    assert terminated(pod, "main")["exitCode"] == 137


async def test_no_more_pods_run_at_once_than_allowed(cluster, shell_plan, tmp_path):
    cluster.start_kubelet(max_running=1)
    alone = f'mkdir {tmp_path}/alone || exit 7; sleep 0.1; rmdir {tmp_path}/alone; echo ok > "$1"'
    result = await cluster.run(shell_plan(dict.fromkeys("abc", alone)))
    assert result.state == "Succeeded"


async def test_an_image_is_said_not_to_be_pulled_once(cluster, create):
    cluster.start_kubelet()
    await finished(cluster, await create("true"))

    async def said():
        events = (await cluster.client.list(EVENTS, namespace="pipelines"))["items"]
        return [e["message"] for e in events if e["reason"] == "NotPulled" and "busybox:1" in e["message"]]

    assert len(await cluster.until(said)) == 1


async def test_nothing_is_left_of_a_deleted_pod(cluster, create, tmp_path):
    cluster.start_kubelet()
    pod = await create(f"echo $$ > {tmp_path}/pid; sleep 1000")

    async def started():
        return (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()

    pid = await cluster.until(started)
    await cluster.client.delete(PODS, pod["metadata"]["name"], namespace="pipelines")

    async def gone():
        return not await cluster.pods() and not (cluster.state / "pods" / pod["metadata"]["uid"]).exists()

    await cluster.until(gone)
    process = await asyncio.create_subprocess_exec("kill", "-0", pid, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() != 0
