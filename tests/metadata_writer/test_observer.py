import pytest

from memopod.kube import PODS, WORKFLOWS, NotFound
from metadata_writer.observer import Observer, TemplateGone, TemplateUnreadable
from metadata_writer.records import State
from metadata_writer.sightings import Sightings


async def seen(cluster, live):
    """Sightings of all that the API server has."""
    sightings = Sightings(lambda _: None, live=live, gone=1 << 20)
    sightings.first_lists.pods_listed.set()
    sightings.first_lists.workflows_listed.set()
    for pod in (await cluster.client.list(PODS, namespace=cluster.namespace))["items"]:
        sightings.on_pod("ADDED", {"apiVersion": "v1", "kind": "Pod", **pod})
    for workflow in (await cluster.client.list(WORKFLOWS, namespace=cluster.namespace))["items"]:
        sightings.on_workflow("ADDED", workflow)
    return sightings


def key_of(played, step):
    return tuple(played.execution(step).split("/"))


async def test_what_there_was_no_room_for_is_asked_of_the_api_server_again(cluster):
    played = await cluster.submit("argo-4.1.2", "artifacts")
    await played.run("make", "use")
    await played.end()
    observations = []
    for live in (1 << 20, 1):
        sightings = await seen(cluster, live)
        observer = Observer(cluster.client, sightings)
        observations.append([await observer.observe(key_of(played, step)) for step in ("make", "use")])
        assert (sightings.look(key_of(played, "make")).pod is None) == (live == 1)
    roomy, cramped = observations
    assert roomy == cramped
    assert [o.record.state for o in roomy] == [State.COMPLETE, State.COMPLETE]
    assert all(o.reported and o.closed for o in roomy)
    assert len(roomy[0].record.outputs) == 3


async def test_a_pod_that_went_meanwhile_is_read_from_its_workflow(cluster):
    played = await cluster.submit("argo-4.1.2", "parameters")
    await played.run("make")
    await played.end()
    sightings = await seen(cluster, 1)
    await played.delete_pods("make")
    with pytest.raises(NotFound):
        await cluster.client.get(
            PODS, played._load("make", "pod")["metadata"]["name"], namespace=cluster.namespace
        )
    found = await Observer(cluster.client, sightings).observe(key_of(played, "make"))
    assert (found.record.state, found.record.from_pod, found.pod) == (State.COMPLETE, False, None)


async def test_a_template_that_is_nowhere_is_said_so_and_so_is_one_that_is_none(cluster):
    played = await cluster.submit("argo-4.1.2", "offloaded")
    await played.run("")
    sightings = await seen(cluster, 1 << 20)
    with pytest.raises(TemplateGone, match="ConfigMap"):
        await Observer(cluster.client, sightings).observe(key_of(played, ""))
    broken = await cluster.client.get(
        PODS, played._load("", "pod")["metadata"]["name"], namespace=cluster.namespace
    )
    for container in broken["spec"]["initContainers"]:
        for variable in container["env"]:
            if variable["name"] == "ARGO_TEMPLATE":
                variable["value"] = "{"
    broken["status"]["phase"] = "Failed"
    sightings.on_pod("MODIFIED", broken)
    with pytest.raises(TemplateUnreadable):
        await Observer(cluster.client, sightings).observe(key_of(played, ""))


async def test_a_step_of_which_nothing_is_left_is_nothing_to_record(cluster):
    sightings = Sightings(lambda _: None, live=1, gone=1)
    sightings.first_lists.workflows_listed.set()
    found = await Observer(cluster.client, sightings).observe(("uid", "node"))
    assert (found.record, found.closed) == (None, True)
