"""A run that was seen to succeed becomes an entry, and what it read is part of its key."""

import asyncio
import sqlite3
from datetime import UTC, datetime

from cache_server.finish import is_held
from memopod.kube import (
    CONFIG_MAPS,
    PODS,
    TASK_RESULTS,
)
from memopod.steps import names
from tests.cache_server.marks import OUTPUTS, marks


async def test_a_finished_pod_is_never_recorded_as_a_run(cluster, parts):
    await parts.entry(OUTPUTS)
    pod = await parts.decide(await cluster.held_pod())
    assert await parts.record(pod) is None


def with_config_map(pod):
    pod["spec"]["containers"][1].setdefault("env", []).append(
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}}
    )


async def put_config_map(cluster, mode, *, create=False):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"mode": mode}}
    if create:
        return await cluster.client.create(CONFIG_MAPS, body, namespace="pipelines")
    return await cluster.client.patch(
        CONFIG_MAPS, "settings", {"data": {"mode": mode}}, namespace="pipelines"
    )


async def test_a_config_map_counts_by_its_content(cluster, parts):
    await put_config_map(cluster, "fast", create=True)
    await parts.entry(OUTPUTS, change=with_config_map)
    await put_config_map(cluster, "slow")
    assert marks(await parts.decide(await cluster.held_pod(change=with_config_map))) == ("run", "miss")
    await put_config_map(cluster, "fast")
    assert marks(await parts.decide(await cluster.held_pod(change=with_config_map))) == ("reuse", "hit")


async def test_a_config_map_that_changed_while_the_step_ran_makes_no_entry(cluster, parts):
    await put_config_map(cluster, "fast", create=True)
    pod = await parts.decide(await cluster.held_pod(change=with_config_map))
    await put_config_map(cluster, "slow")
    await put_config_map(cluster, "fast")
    assert await parts.record(await cluster.run(pod, OUTPUTS)) is None


async def test_a_config_map_that_is_missing_means_no_key(cluster, parts):
    pod = await parts.decide(await cluster.held_pod(change=with_config_map))
    assert marks(pod) == ("run", "configmap-unreadable")


async def test_a_step_that_nobody_decided_for_is_recorded_if_its_pod_says_all(cluster, parts):
    pod = cluster.pod_of(await cluster.workflow())
    marked = await cluster.hold(pod, alive=False)
    assert not is_held(marked)
    assert await parts.record(await cluster.run(marked, OUTPUTS)) is not None
    assert marks(await parts.decide(await cluster.held_pod())) == ("reuse", "hit")


async def test_outputs_that_come_late_are_waited_for(cluster, parts):
    pod = await parts.decide(await cluster.held_pod())
    name = pod["metadata"]["name"]
    await cluster.report(pod, OUTPUTS, complete="false")
    await cluster.client.patch(PODS, name, {"spec": {"nodeName": "n"}}, namespace="pipelines")
    now = datetime.now(UTC).isoformat()
    ended = {"terminated": {"exitCode": 0, "startedAt": now, "finishedAt": now, "containerID": "c://1"}}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "main", "state": ended}]}
    pod = await cluster.client.patch(
        PODS, name, {"status": status}, namespace="pipelines", subresource="status"
    )
    parts.recorder.see(pod)
    complete = {"metadata": {"labels": {names.ARGO_OUTPUTS_COMPLETED: "true"}}}
    await cluster.client.patch(TASK_RESULTS, name, complete, namespace="pipelines")
    assert await parts.record(pod) is not None


async def test_a_run_in_whose_place_our_result_stands_makes_no_entry(cluster, parts):
    pod = await parts.decide(await cluster.held_pod())
    await cluster.report(pod, OUTPUTS, **{names.ENTRY: "e" * 32})

    async def exists(write, call):
        return None if write == "create workflowtaskresults" else await call()

    cluster.client.fault = exists
    assert await parts.record(await cluster.run(pod, OUTPUTS)) is None


async def test_a_step_is_recorded_although_the_database_was_away_for_long(cluster, parts, monkeypatch):
    monkeypatch.setattr("cache_server.recorder._PATIENCE", 0.0)
    pod = await parts.decide(await cluster.held_pod())
    ended = await cluster.run(pod, OUTPUTS)
    recorder = parts.recorder
    blocker = sqlite3.connect(cluster.state / "cache.db", isolation_level=None)
    blocker.execute("ALTER TABLE entries RENAME TO elsewhere")
    recorder.see(ended)
    async with asyncio.timeout(10):
        while ended["metadata"]["uid"] in recorder._seen:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    blocker.execute("ALTER TABLE elsewhere RENAME TO entries")
    blocker.close()
    async with asyncio.timeout(10):
        while ended["metadata"]["uid"] in recorder._jobs:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    assert await parts.record(ended) is not None
