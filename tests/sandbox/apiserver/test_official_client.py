"""The Kubernetes project's own typed client finds nothing missing in what it asks for."""

import asyncio

import pytest
from kubernetes.aio import client as kubernetes
from kubernetes.aio import config, watch
from kubernetes.aio.client.exceptions import ApiException

NS = "pipelines"


@pytest.fixture
async def official(server, tmp_path):
    api = await config.new_client_from_config(str(tmp_path / "kubeconfig"), persist_config=False)
    yield api
    await api.close()


@pytest.fixture
def core(official):
    return kubernetes.CoreV1Api(official)


async def test_it_creates_reads_patches_and_deletes_pods(core, make_pod):
    created = await core.create_namespaced_pod(NS, make_pod(gates=["memopod.io/decide"], labels={"app": "x"}))
    assert created.spec.scheduling_gates[0].name == "memopod.io/decide"
    assert created.status.conditions[0].reason == "SchedulingGated"
    listed = await core.list_pod_for_all_namespaces(label_selector="app in (x, y)", limit=1)
    assert [pod.metadata.uid for pod in listed.items] == [created.metadata.uid]
    released = await core.patch_namespaced_pod(
        "a",
        NS,
        [{"op": "remove", "path": "/spec/schedulingGates/0"}],
        _content_type="application/json-patch+json",
    )
    assert not released.spec.scheduling_gates
    done = await core.patch_namespaced_pod_status(
        "a", NS, {"status": {"phase": "Succeeded"}}, _content_type="application/merge-patch+json"
    )
    assert done.status.phase == "Succeeded"
    await core.delete_namespaced_pod("a", NS)
    with pytest.raises(ApiException) as error:
        await core.read_namespaced_pod("a", NS)
    assert (error.value.status, error.value.reason) == (404, "Not Found")


async def test_it_replaces_with_optimistic_locking(core):
    body = kubernetes.V1ConfigMap(metadata=kubernetes.V1ObjectMeta(name="a"), data={"k": "1"})
    read = await core.create_namespaced_config_map(NS, body)
    read.data = {"k": "2"}
    await core.replace_namespaced_config_map("a", NS, read)
    with pytest.raises(ApiException) as error:
        await core.replace_namespaced_config_map("a", NS, read)
    assert error.value.status == 409


async def test_it_watches(core, make_pod):
    listed = await core.list_namespaced_pod(NS)
    async with asyncio.timeout(5), watch.Watch() as events:
        version = listed.metadata.resource_version
        stream = events.stream(core.list_namespaced_pod, NS, resource_version=version, timeout_seconds=5)
        await core.create_namespaced_pod(NS, make_pod())
        event = await anext(stream)
    assert (event["type"], event["object"].metadata.name) == ("ADDED", "a")


async def test_it_discovers_and_handles_custom_objects(official):
    version = await kubernetes.VersionApi(official).get_code()
    assert version.git_version.startswith("v1.")
    custom = kubernetes.CustomObjectsApi(official)
    path = ("argoproj.io", "v1alpha1", NS, "workflows")
    body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"generateName": "w-"}}
    created = await custom.create_namespaced_custom_object(*path, body)
    listed = await custom.list_namespaced_custom_object(*path)
    assert listed["items"] == [created]
    assert await custom.get_namespaced_custom_object(*path, created["metadata"]["name"]) == created


async def test_its_leases_are_ours(official):
    leases = kubernetes.CoordinationV1Api(official)
    spec = kubernetes.V1LeaseSpec(holder_identity="one", lease_duration_seconds=4)
    body = kubernetes.V1Lease(metadata=kubernetes.V1ObjectMeta(name="lead"), spec=spec)
    await leases.create_namespaced_lease("memopod", body)
    assert (await leases.read_namespaced_lease("lead", "memopod")).spec.holder_identity == "one"
