import asyncio

import pytest

from memopod.kube import (
    CONFIG_MAPS,
    LEASES,
    NAMESPACES,
    PODS,
    SECRETS,
    TASK_RESULTS,
    WORKFLOWS,
    ApiError,
    Conflict,
    Invalid,
    NotFound,
)

NS = "pipelines"


async def test_a_new_object_gets_what_the_server_gives(client):
    created = await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"k": "v"}}, namespace=NS)
    assert (created["kind"], created["apiVersion"], created["data"]) == ("ConfigMap", "v1", {"k": "v"})
    assert created["metadata"].keys() >= {"uid", "creationTimestamp", "resourceVersion", "namespace"}
    assert await client.get(CONFIG_MAPS, "a", namespace=NS) == created


async def test_names_are_generated(client):
    body = {"metadata": {"generateName": "run-"}}
    names = {(await client.create(WORKFLOWS, body, namespace=NS))["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("run-") and len(name) == 9 for name in names)


async def test_a_name_can_be_taken_only_once(client):
    await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace=NS)
    with pytest.raises(Conflict) as refusal:
        await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace=NS)
    assert refusal.value.reason == "AlreadyExists"


async def test_of_many_who_create_the_same_name_at_once_one_succeeds(client):
    body = {"metadata": {"name": "a"}}
    tries = [client.create(CONFIG_MAPS, body, namespace=NS) for _ in range(10)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 9


async def test_nothing_is_created_in_a_namespace_that_is_not_there(client):
    with pytest.raises(NotFound, match="namespaces"):
        await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace="absent")


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"name": "a", "resourceVersion": "7"}},
        {"metadata": {"name": "a", "namespace": "other"}},
        {"metadata": {"name": "a"}, "kind": "Secret"},
        {"metadata": {"name": "a"}, "apiVersion": "v2"},
        {"metadata": []},
    ],
)
async def test_an_object_that_contradicts_its_path_is_a_bad_request(client, body):
    with pytest.raises(ApiError) as refusal:
        await client.create(CONFIG_MAPS, body, namespace=NS)
    assert refusal.value.status == 400


async def test_a_stale_version_is_a_conflict(client):
    read = await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace=NS)
    await client.patch(CONFIG_MAPS, "a", {"data": {"k": "1"}}, namespace=NS)
    with pytest.raises(Conflict) as refusal:
        await client.replace(CONFIG_MAPS, "a", {**read, "data": {"k": "2"}}, namespace=NS)
    assert refusal.value.reason == "Conflict"
    version = read["metadata"]["resourceVersion"]
    with pytest.raises(Conflict):
        await client.patch(CONFIG_MAPS, "a", {"metadata": {"resourceVersion": version}}, namespace=NS)


async def test_another_object_of_the_same_name_is_a_conflict(client):
    await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace=NS)
    with pytest.raises(Conflict):
        await client.patch(CONFIG_MAPS, "a", {"metadata": {"uid": "another"}}, namespace=NS)
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, "a", namespace=NS, uid="another")


@pytest.mark.parametrize("resource", [LEASES, WORKFLOWS, TASK_RESULTS])
async def test_an_update_of_these_kinds_needs_a_version(client, resource):
    created = await client.create(resource, {"metadata": {"name": "a"}, "spec": {}}, namespace=NS)
    del created["metadata"]["resourceVersion"]
    with pytest.raises(Invalid):
        await client.replace(resource, "a", created, namespace=NS)


async def test_a_change_that_changes_nothing_keeps_the_version(client, server):
    created = await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"k": "v"}}, namespace=NS)
    again = await client.patch(CONFIG_MAPS, "a", {"data": {"k": "v"}}, namespace=NS)
    assert again == created


async def test_the_generation_counts_changes_of_the_spec(client, create_pod):
    assert (await create_pod("a", gates=["g/x"]))["metadata"]["generation"] == 1
    labelled = await client.patch(PODS, "a", {"metadata": {"labels": {"l": "1"}}}, namespace=NS)
    assert labelled["metadata"]["generation"] == 1
    released = await client.patch(PODS, "a", {"spec": {"schedulingGates": None}}, namespace=NS)
    assert released["metadata"]["generation"] == 2


async def test_what_the_server_wrote_cannot_be_changed(client):
    created = await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace=NS)
    changed = {**created, "metadata": {**created["metadata"], "creationTimestamp": "2001-01-01T00:00:00Z"}}
    assert (await client.replace(CONFIG_MAPS, "a", changed, namespace=NS)) == created


async def test_a_new_pod_is_pending_whatever_it_says(client, make_pod):
    created = await client.create(PODS, {**make_pod(), "status": {"phase": "Succeeded"}}, namespace=NS)
    assert created["status"] == {"phase": "Pending", "qosClass": "BestEffort"}


async def test_the_main_resource_ignores_status_and_status_ignores_spec(client, create_pod):
    pod = await create_pod()
    both = {"spec": {"activeDeadlineSeconds": 5}, "status": {"phase": "Running"}}
    main = await client.patch(PODS, "a", both, namespace=NS)
    assert (main["spec"]["activeDeadlineSeconds"], main["status"]["phase"]) == (5, "Pending")
    status = await client.patch(
        PODS, "a", {**both, "spec": {"activeDeadlineSeconds": 3}}, namespace=NS, subresource="status"
    )
    assert (status["spec"]["activeDeadlineSeconds"], status["status"]["phase"]) == (5, "Running")
    assert status["status"]["qosClass"] == pod["status"]["qosClass"]


async def test_one_status_patch_sets_phase_labels_and_annotations(client, create_pod):
    pod = await create_pod(gates=["memopod.io/decide"])
    patch = {
        "metadata": {
            "resourceVersion": pod["metadata"]["resourceVersion"],
            "labels": {"memopod.io/step": "reused"},
            "annotations": {"memopod.io/reason": "hit"},
            "ownerReferences": [
                {"uid": "u", "name": "w", "kind": "Workflow", "apiVersion": "argoproj.io/v1alpha1"}
            ],
        },
        "status": {"phase": "Succeeded"},
    }
    done = await client.patch(PODS, "a", patch, namespace=NS, subresource="status")
    assert done["status"]["phase"] == "Succeeded"
    assert done["metadata"]["labels"] == {"memopod.io/step": "reused"}
    assert done["metadata"]["annotations"] == {"memopod.io/reason": "hit"}
    assert "ownerReferences" not in done["metadata"]
    with pytest.raises(Conflict):
        await client.patch(PODS, "a", patch, namespace=NS, subresource="status")


async def test_workflows_have_no_status_of_their_own(client):
    body = {"metadata": {"name": "w"}, "spec": {}, "status": {"phase": "Running"}}
    assert (await client.create(WORKFLOWS, body, namespace=NS))["status"] == {"phase": "Running"}
    with pytest.raises(NotFound):
        await client.patch(WORKFLOWS, "w", {"status": {}}, namespace=NS, subresource="status")


async def test_secrets_take_plain_text(client):
    secret = await client.create(SECRETS, {"metadata": {"name": "s"}, "stringData": {"k": "v"}}, namespace=NS)
    assert (secret["data"], secret["type"]) == ({"k": "dg=="}, "Opaque")
    assert "stringData" not in secret


async def test_what_a_workflow_owns_goes_with_it(client, make_pod):
    workflow = await client.create(WORKFLOWS, {"metadata": {"name": "w"}}, namespace=NS)
    owner = {"kind": "Workflow", "apiVersion": "argoproj.io/v1alpha1", "name": "w"}
    pod = make_pod("owned")
    pod["metadata"]["ownerReferences"] = [{**owner, "uid": workflow["metadata"]["uid"]}]
    await client.create(PODS, pod, namespace=NS)
    await client.create(PODS, make_pod("free"), namespace=NS)
    await client.delete(WORKFLOWS, "w", namespace=NS)
    assert [p["metadata"]["name"] for p in (await client.list(PODS))["items"]] == ["free"]


async def test_an_object_with_a_finalizer_stays_until_it_is_let_go(client):
    body = {"metadata": {"name": "a", "finalizers": ["example.com/keep"]}}
    await client.create(CONFIG_MAPS, body, namespace=NS)
    await client.delete(CONFIG_MAPS, "a", namespace=NS)
    assert (await client.get(CONFIG_MAPS, "a", namespace=NS))["metadata"]["deletionTimestamp"]
    await client.patch(CONFIG_MAPS, "a", {"metadata": {"finalizers": None}}, namespace=NS)
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, "a", namespace=NS)


async def test_a_pod_without_a_node_is_deleted_at_once(client, create_pod):
    await create_pod()
    await client.delete(PODS, "a", namespace=NS)
    with pytest.raises(NotFound):
        await client.get(PODS, "a", namespace=NS)


async def test_a_running_pod_gets_its_grace_period_and_the_kubelet_ends_it(client, create_pod):
    await create_pod()
    await client.patch(PODS, "a", {"spec": {"nodeName": "sandbox"}}, namespace=NS)
    await client.delete(PODS, "a", namespace=NS)
    marked = (await client.get(PODS, "a", namespace=NS))["metadata"]
    assert marked["deletionTimestamp"]
    assert marked["deletionGracePeriodSeconds"] == 30
    await client.delete(PODS, "a", namespace=NS, grace_seconds=0)
    with pytest.raises(NotFound):
        await client.get(PODS, "a", namespace=NS)


async def test_a_namespace_goes_with_all_that_is_in_it(client, create_pod):
    await client.create(NAMESPACES, {"metadata": {"name": "short"}})
    await create_pod("inside", namespace="short")
    await create_pod("outside")
    await client.delete(NAMESPACES, "short")
    assert [p["metadata"]["name"] for p in (await client.list(PODS))["items"]] == ["outside"]


async def test_a_namespace_carries_its_name_as_a_label(client):
    namespace = await client.get(NAMESPACES, NS)
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": NS}
    assert namespace["status"] == {"phase": "Active"}
