"""A cache server of several processes is one to everybody else."""

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import ssl
from pathlib import Path

import aiohttp

from cache_server.finish import is_held
from memopod.kube import ApiError
from memopod.steps import names
from tests.cache_server.marks import OUTPUTS
from tests.cache_server.service import Process, register, until

NAMESPACE = "pipelines"


async def test_several_processes_answer_on_one_port_and_are_counted_as_one(cluster, flags, argo):
    async with Process.start(*flags, "--processes", "3") as server:
        await register(cluster, server.ports["port"])
        await server.ready()
        pid = server.process.pid
        workers = webhooks(pid)
        assert len(workers) == 2
        for _ in range(4):
            assert is_held(await argo())
        os.kill(workers[0], signal.SIGKILL)

        async def replaced():
            now = webhooks(pid)
            return len(now) == 2 and workers[0] not in now

        await until(replaced, 30)
        await server.ready()
        # The first process hangs: nobody else may hold Pods for it.
        server.process.send_signal(signal.SIGSTOP)

        async def nobody_holds():
            with contextlib.suppress(ApiError):
                return not is_held(await argo())

        await until(nobody_holds, 60)
        server.process.send_signal(signal.SIGCONT)
        workers = webhooks(pid)
        assert await server.stop() == 0
    assert not any(lives(worker) for worker in workers)


async def admitted(cluster, port, times):
    """Ask the webhook for as many new steps, each on a connection of its own: any process may answer."""
    ca = ssl.create_default_context(cafile=str(cluster.state / "cluster" / "tls" / "ca.crt"))
    connector = aiohttp.TCPConnector(ssl=ca, force_close=True)
    pod = cluster.pod_of(await cluster.workflow())
    async with aiohttp.ClientSession(connector=connector) as session:
        for number in range(times):
            request = {
                "uid": str(number), "resource": {"group": "", "version": "v1", "resource": "pods"},
                "operation": "CREATE", "namespace": NAMESPACE, "object": pod,
                "userInfo": {"username": "system:serviceaccount:argo:argo"},
            }  # fmt: skip
            review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
            async with session.post(f"https://127.0.0.1:{port}/mutate", json=review) as answer:
                assert answer.status == 200


async def admissions(server):
    """What the metrics say of admissions: (decision, reason) -> number."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.ports['health_port']}/metrics") as answer,
    ):
        found = re.findall(
            r'memopod_admissions_total{decision="(\S+)",reason="(\S+)"} (\S+)', await answer.text()
        )
    return {(decision, reason): float(number) for decision, reason, number in found}


async def test_in_placeholder_mode_too_what_any_process_answered_is_counted(cluster, flags, argo):
    patient = ["--strategy", "placeholder", "--lookup-timeout", "20"]
    async with Process.start(*flags, *patient, "--processes", "2") as server:
        await register(cluster, server.ports["port"])
        await server.ready()
        await admitted(cluster, server.ports["port"], 40)
        first = await argo()
        await cluster.run(first, OUTPUTS)

        async def recorded():
            return (await cluster.get(first))["metadata"]["labels"][names.KFP_CACHE_ID] != ""

        await until(recorded, 30)
        reused = []
        async with asyncio.timeout(60):
            # A process forgets within a second that there was no entry.
            while len(reused) < 5:
                pod = await argo()
                if pod["metadata"]["labels"][names.STEP_LABEL] == names.PLACEHOLDER:
                    reused.append(pod)

        async def completed():
            found = [await cluster.get(pod) for pod in reused]
            return all(p["metadata"]["labels"][names.STEP_LABEL] == names.REUSED for p in found)

        await until(completed, 30)

        async def counted():
            told = await admissions(server)
            return told if told.get(("run", "miss"), 0) >= 41 and told.get(("reuse", "hit")) == 5 else None

        told = await until(counted, 30)
        assert await server.stop() == 0
    with contextlib.closing(sqlite3.connect(cluster.state / "cache.db")) as database:
        stored = dict(database.execute("SELECT reason, sum(decided) FROM decisions GROUP BY reason"))
    assert stored == {"miss": told["run", "miss"], "hit": 5}


def lives(pid):
    return Path(f"/proc/{pid}").exists()


def webhooks(pid):
    """Process ids of the processes that only answer."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


async def test_when_the_first_process_dies_the_others_end(cluster, flags):
    async with Process.start(*flags, "--processes", "2") as server:
        await server.ready()
        (worker,) = webhooks(server.process.pid)
        server.process.kill()
        await server.process.wait()

        async def gone():
            return not lives(worker)

        await until(gone, 30)
