"""Hold, decide, finish: the cache server's own processes on a real API server, called over TLS."""

import sqlite3
from contextlib import closing

from memopod.steps import names
from tests.real.argo import Step
from tests.real.cluster import until


async def test_a_step_runs_once_and_is_reused_by_the_next_workflow(cluster, play):
    server = await cluster.cache_server()
    argo, kubelet = await play()
    first = await argo.submit(Step())
    assert await first.end() == "Succeeded"
    assert kubelet.ran == [first.pod_name()]

    async def recorded():
        with closing(sqlite3.connect(cluster.folder / "cache.db")) as database:
            return database.execute("SELECT pod_name FROM entries").fetchall() == [(first.pod_name(),)]

    await until(recorded, "the first run is an entry")
    second = await argo.submit(Step())
    assert await second.end() == "Succeeded"
    assert kubelet.ran == [first.pod_name()]
    assert second.nodes["make"].outputs == first.nodes["make"].outputs
    pod = await cluster.pod(second.pod_name())
    assert pod["metadata"]["labels"][names.STEP_LABEL] == names.REUSED
    assert pod["metadata"]["annotations"][names.SOURCE_POD] == first.pod_name()
    assert "nodeName" not in pod["spec"]
    assert await server.stop() == 0
