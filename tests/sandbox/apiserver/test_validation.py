import pytest

from memopod.kube import PODS, Invalid, set_metadata_ops

NS = "pipelines"


def cause(field, reason):
    return pytest.raises(Invalid, match=rf"422 Invalid: .*{field}.* \({reason}\)")


async def test_a_gate_can_be_removed_and_never_added(client, create_pod):
    held = await create_pod(gates=["memopod.io/decide", "other/gate"])
    assert held["status"]["conditions"][0]["reason"] == "SchedulingGated"
    patch = [
        {"op": "test", "path": "/spec/schedulingGates/0/name", "value": "memopod.io/decide"},
        {"op": "remove", "path": "/spec/schedulingGates/0"},
    ]
    released = await client.patch(PODS, "a", patch, namespace=NS)
    assert released["spec"]["schedulingGates"] == [{"name": "other/gate"}]
    assert released["status"] == held["status"]
    add = [{"op": "add", "path": "/spec/schedulingGates/-", "value": {"name": "memopod.io/decide"}}]
    with cause("spec.schedulingGates", "FieldValueForbidden"):
        await client.patch(PODS, "a", add, namespace=NS)


async def test_a_gate_and_a_node_exclude_each_other(client, create_pod):
    with cause("spec.nodeName", "FieldValueForbidden"):
        await create_pod(gates=["g/x"], nodeName="sandbox")
    await create_pod(gates=["g/x"])
    with cause("spec.nodeName", "FieldValueForbidden"):
        await client.patch(PODS, "a", {"spec": {"nodeName": "sandbox"}}, namespace=NS)


async def test_a_gate_must_not_be_there_twice(create_pod):
    with cause("spec.schedulingGates", "FieldValueDuplicate"):
        await create_pod(gates=["g/x", "g/x"])


async def test_a_bound_pod_stays_on_its_node(client, create_pod):
    await create_pod(nodeName="one")
    with cause("spec.nodeName", "FieldValueForbidden"):
        await client.patch(PODS, "a", {"spec": {"nodeName": "two"}}, namespace=NS)


async def test_of_a_pods_spec_little_can_be_changed(client, create_pod):
    await create_pod(gates=["g/x"])
    image = [{"op": "replace", "path": "/spec/containers/0/image", "value": "busybox:2"}]
    toleration = [{"op": "add", "path": "/spec/tolerations/-", "value": {"key": "k", "operator": "Exists"}}]
    assert (await client.patch(PODS, "a", image + toleration, namespace=NS))["metadata"]["generation"] == 2
    with cause("spec", "FieldValueForbidden"):
        await client.patch(
            PODS, "a", [{"op": "add", "path": "/spec/containers/0/args", "value": ["x"]}], namespace=NS
        )
    with cause("spec.tolerations", "FieldValueForbidden"):
        await client.patch(PODS, "a", [{"op": "remove", "path": "/spec/tolerations/0"}], namespace=NS)


@pytest.mark.parametrize("value", ["x" * 64, "-x", "a/b", 7])
async def test_a_label_value_that_kubernetes_would_refuse_is_refused(client, create_pod, value):
    pod = await create_pod()
    with cause("metadata.labels", "FieldValueInvalid"):
        await client.patch(PODS, "a", set_metadata_ops(pod["metadata"], labels={"l": value}), namespace=NS)


@pytest.mark.parametrize("name", ["Upper", "a_b", "-a", "x" * 254, ""])
async def test_a_bad_name_is_refused(create_pod, name):
    with pytest.raises(Invalid, match=r"metadata\.name"):
        await create_pod(name)


async def test_a_patch_into_an_absent_parent_is_refused(client, create_pod):
    await create_pod()
    with pytest.raises(Invalid):
        await client.patch(
            PODS, "a", [{"op": "add", "path": "/metadata/annotations/k", "value": "v"}], namespace=NS
        )


async def test_a_container_that_has_ended_does_not_run_again(client, create_pod):
    await create_pod()
    ended = {"name": "main", "state": {"terminated": {"exitCode": 0}}}
    done = {"status": {"phase": "Succeeded", "containerStatuses": [ended]}}
    await client.patch(PODS, "a", done, namespace=NS, subresource="status")
    # The phase alone may go back: container statuses are what protects a finished Pod.
    back = {"status": {"phase": "Running"}}
    assert (await client.patch(PODS, "a", back, namespace=NS, subresource="status"))["status"][
        "phase"
    ] == "Running"
    running = {"status": {"containerStatuses": [{"name": "main", "state": {"running": {}}}]}}
    with cause("status.containerStatuses", "FieldValueForbidden"):
        await client.patch(PODS, "a", running, namespace=NS, subresource="status")


@pytest.mark.parametrize(
    ("containers", "field"),
    [
        ([], "spec.containers"),
        ([{"name": "main"}], "image"),
        ([{"name": "a b", "image": "x"}], "name"),
        ([{"name": "main", "image": "x"}] * 2, "name"),
    ],
)
async def test_a_pod_needs_well_formed_containers(create_pod, containers, field):
    with pytest.raises(Invalid, match=field):
        await create_pod(containers=containers)


async def test_annotations_have_a_limit(create_pod, client):
    pod = await create_pod()
    operations = set_metadata_ops(pod["metadata"], annotations={"a": "x" * 262_144})
    with cause("metadata.annotations", "FieldValueTooLong"):
        await client.patch(PODS, "a", operations, namespace=NS)
