import asyncio
from contextlib import aclosing

import pytest

from memopod.kube import CONFIG_MAPS, PODS, Gone, NotFound

NS = "pipelines"


async def read(events, count):
    """The next `count` events that are no bookmarks, as (type, name)."""
    got = []
    async with asyncio.timeout(5):
        while len(got) < count:
            event = await anext(events)
            if event["type"] != "BOOKMARK":
                got.append((event["type"], event["object"]["metadata"]["name"]))
    return got


async def config_map(client, name, **labels):
    return await client.create(CONFIG_MAPS, {"metadata": {"name": name, "labels": labels}}, namespace=NS)


async def version(client, resource=CONFIG_MAPS):
    return (await client.list(resource))["metadata"]["resourceVersion"]


async def test_a_watch_tells_of_everything_after_its_version(client):
    await config_map(client, "before")
    watch = client.watch(CONFIG_MAPS, resource_version=await version(client))
    async with aclosing(watch) as events:
        await config_map(client, "a")
        await client.patch(CONFIG_MAPS, "a", {"data": {"k": "v"}}, namespace=NS)
        await client.delete(CONFIG_MAPS, "a", namespace=NS)
        assert await read(events, 3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_a_watch_sees_its_namespace_its_name_and_its_labels_only(client):
    start = await version(client)
    await client.create(CONFIG_MAPS, {"metadata": {"name": "elsewhere"}}, namespace="argo")
    await config_map(client, "a", app="x")
    await config_map(client, "b")
    whole = client.watch(CONFIG_MAPS, resource_version=start)
    here = client.watch(CONFIG_MAPS, namespace=NS, resource_version=start)
    named = client.watch(CONFIG_MAPS, name="b", resource_version=start)
    labelled = client.watch(CONFIG_MAPS, label_selector="app", resource_version=start)
    async with aclosing(whole), aclosing(here), aclosing(named), aclosing(labelled):
        assert await read(whole, 3) == [("ADDED", "elsewhere"), ("ADDED", "a"), ("ADDED", "b")]
        assert await read(here, 2) == [("ADDED", "a"), ("ADDED", "b")]
        assert await read(named, 1) == [("ADDED", "b")]
        assert await read(labelled, 1) == [("ADDED", "a")]


async def test_an_object_that_stops_matching_is_deleted_for_the_watch(client):
    await config_map(client, "a", app="x")
    watch = client.watch(CONFIG_MAPS, label_selector="app=x", resource_version=await version(client))
    async with aclosing(watch) as events:
        await client.patch(CONFIG_MAPS, "a", {"metadata": {"labels": {"app": "y"}}}, namespace=NS)
        await client.patch(CONFIG_MAPS, "a", {"metadata": {"labels": {"app": "x"}}}, namespace=NS)
        assert await read(events, 2) == [("DELETED", "a"), ("ADDED", "a")]


async def test_bookmarks_carry_the_version_on(client):
    start = await version(client)
    async with aclosing(client.watch(PODS, resource_version=start)) as events:
        await config_map(client, "a")
        async with asyncio.timeout(5):
            while (event := await anext(events))["object"]["metadata"]["resourceVersion"] == start:
                pass
    assert event["type"] == "BOOKMARK"
    assert event["object"]["kind"] == "Pod"


async def test_a_watch_ends_after_its_time(client):
    watch = client.watch(PODS, resource_version=await version(client), timeout_seconds=1)
    async with asyncio.timeout(3):
        assert {event["type"] async for event in watch} <= {"BOOKMARK"}


async def test_a_version_that_is_no_longer_kept_is_gone(client):
    start = await version(client)
    for number in range(51):
        await config_map(client, f"a-{number}")
    with pytest.raises(Gone):
        await anext(client.watch(CONFIG_MAPS, resource_version=start))
    async with aclosing(client.watch(PODS, resource_version=start)) as events:
        assert (await anext(events))["type"] == "BOOKMARK"


async def test_a_watch_from_no_version_begins_with_what_is_there(client):
    await config_map(client, "a")
    async with aclosing(client.watch(CONFIG_MAPS, resource_version="")) as events:
        assert await read(events, 1) == [("ADDED", "a")]
        await config_map(client, "b")
        assert await read(events, 1) == [("ADDED", "b")]


async def test_open_watches_do_not_delay_a_shutdown(client, server):
    watch = client.watch(PODS, resource_version=await version(client))
    reading = asyncio.create_task(anext(watch), name="watch")
    async with asyncio.timeout(1):
        await reading
        await server.stop()


async def test_a_list_comes_in_pages(http, client):
    for name in "abc":
        await config_map(client, name)
    path = f"/api/v1/namespaces/{NS}/configmaps?limit=2"
    first = (await http("GET", path)).body
    assert (first["kind"], first["metadata"]["remainingItemCount"]) == ("ConfigMapList", 1)
    assert "kind" not in first["items"][0]
    await client.delete(CONFIG_MAPS, "a", namespace=NS)
    token = first["metadata"]["continue"]
    second = (await http("GET", f"{path}&continue={token}")).body
    assert [item["metadata"]["name"] for item in first["items"] + second["items"]] == ["a", "b", "c"]
    assert second["metadata"] == {"resourceVersion": first["metadata"]["resourceVersion"]}


async def test_a_page_is_gone_when_the_changes_since_the_first_are(http, client):
    for name in "ab":
        await config_map(client, name)
    first = (await http("GET", "/api/v1/configmaps?limit=1")).body
    for number in range(51):
        await config_map(client, f"c-{number}")
    answer = await http("GET", f"/api/v1/configmaps?limit=1&continue={first['metadata']['continue']}")
    assert (answer.status, answer.body["reason"]) == (410, "Expired")
    assert (await http("GET", "/api/v1/configmaps?continue=nonsense")).status == 400


async def test_a_collection_is_deleted_by_labels(http, client):
    await config_map(client, "a", app="x")
    await config_map(client, "b")
    answer = await http("DELETE", f"/api/v1/namespaces/{NS}/configmaps?labelSelector=app%3Dx")
    assert [item["metadata"]["name"] for item in answer.body["items"]] == ["a"]
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, "a", namespace=NS)
    await client.get(CONFIG_MAPS, "b", namespace=NS)
