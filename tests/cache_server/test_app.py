import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import sqlite3
import ssl
import sys
from pathlib import Path

import aiohttp
import pytest

from cache_server.finish import is_held
from memopod.kube import LEASES, MUTATING_WEBHOOKS, PODS, ApiError, Client
from memopod.steps import names

OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}
NAMESPACE = "pipelines"


class Process:
    """A service of ours, as a process; `ports` are those it says it serves on."""

    def __init__(self, process):
        self.process = process
        self.ports = {}
        self.lines = []

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, *arguments, **environ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stderr=asyncio.subprocess.PIPE, limit=1 << 20,
            env={**os.environ, **environ},
        )  # fmt: skip
        service = cls(process)
        try:
            await asyncio.wait_for(service._serving(), 30)
            reader = asyncio.create_task(service._read(), name="logs")
            yield service
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await asyncio.wait_for(reader, 10)

    async def _serving(self):
        while True:
            line = await self.process.stderr.readline()
            assert line, self.lines
            self.lines.append(line.decode())
            event = json.loads(line)
            if event["event"] == "serving":
                self.ports = event
                return

    async def _read(self):
        while line := await self.process.stderr.readline():
            self.lines.append(line.decode())

    async def ready(self):
        async with aiohttp.ClientSession() as session:

            async def is_ready():
                url = f"http://127.0.0.1:{self.ports['health_port']}/readyz"
                async with session.get(url) as answer:
                    return answer.status == 200

            await until(is_ready, 15)

    async def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)


async def until(condition, seconds):
    async with asyncio.timeout(seconds):
        while not (value := await condition()):  # noqa: ASYNC110 (polls another process)
            await asyncio.sleep(0.05)
    return value


@pytest.fixture
def flags(cluster):
    state = cluster.state / "cluster"
    (cluster.state / "seal.key").write_bytes(b"s" * 32)
    (cluster.state / "buckets").mkdir()
    return [
        "cache_server", "--listen-host", "127.0.0.1", "--listen-port", "0",
        "--health-host", "127.0.0.1", "--health-port", "0",
        "--kubeconfig", str(state / "kube" / "cache-server.kubeconfig"),
        "--tls-cert-file", str(state / "tls" / "cache-server.crt"),
        "--tls-key-file", str(state / "tls" / "cache-server.key"),
        "--database", f"sqlite:///{cluster.state / 'cache.db'}",
        "--seal-key-file", str(cluster.state / "seal.key"), "--settle-time", "0.05",
        "--trusted-creators", "system:serviceaccount:argo:argo",
    ]  # fmt: skip


async def register(cluster, port):
    ca = (cluster.state / "cluster" / "tls" / "ca.crt").read_bytes()
    webhook = {
        "name": "cache.memopod.io", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "failurePolicy": "Ignore", "timeoutSeconds": 5,
        "clientConfig": {
            "url": f"https://127.0.0.1:{port}/mutate", "caBundle": base64.b64encode(ca).decode(),
        },
        "objectSelector": {"matchLabels": {names.KFP_OPT_IN_LABEL: "true"}},
        "rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
        ],
    }  # fmt: skip
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "memopod"}, "webhooks": [webhook],
    }  # fmt: skip
    await cluster.client.create(MUTATING_WEBHOOKS, configuration)


@pytest.fixture
async def argo(cluster):
    path = cluster.state / "cluster" / "kube" / "workflow-controller.kubeconfig"
    async with Client.from_kubeconfig(str(path)) as client:

        async def create(**arguments):
            pod = cluster.pod_of(await cluster.workflow(), **arguments)
            return await client.create(PODS, pod, namespace=NAMESPACE)

        yield create


def annotation(name, value):
    async def current(cluster, pod):
        found = await cluster.get(pod)
        return found if found["metadata"]["annotations"].get(name) == value else None

    return current


async def decided(cluster, pod):
    async def is_decided():
        found = await cluster.get(pod)
        return found if names.DECISION in found["metadata"]["annotations"] else None

    return await until(is_decided, 15)


async def ran(cluster, argo):
    """The first run of the step: released, run, and in the database."""
    pod = await decided(cluster, await argo())
    assert pod["metadata"]["annotations"][names.DECISION] == names.RUN
    return await cluster.run(pod, OUTPUTS)


async def reused(cluster, argo):
    """Runs of the step until one is reused: recording goes on beside them."""

    async def hit():
        pod = await decided(cluster, await argo())
        return pod if pod["metadata"]["annotations"][names.DECISION] == names.REUSE else None

    return await until(hit, 20)


async def test_the_process_holds_decides_records_and_ends_in_order(cluster, flags, argo):
    async with Process.start(*flags) as server:
        await register(cluster, server.ports["port"])
        await server.ready()
        await ran(cluster, argo)
        pod = await reused(cluster, argo)
        assert pod["status"]["phase"] == "Succeeded"
        assert await server.stop() == 0
    lease = await cluster.client.get(LEASES, "memopod-cache-controller", namespace="memopod")
    assert not lease["spec"].get("holderIdentity")
    assert "hello" not in "".join(server.lines)
    events = [json.loads(line)["event"] for line in server.lines]
    assert events[-1] == "stopped"
    with contextlib.closing(sqlite3.connect(cluster.state / "cache.db")) as database:
        counted = dict(database.execute("SELECT reason, sum(decided) FROM decisions GROUP BY reason"))
    assert counted["miss"] >= 1
    assert counted["hit"] == 1


async def test_kubeflows_arguments_and_environment_are_enough(cluster, mariadb, argo):
    """Those of its manifest; only addresses, and where the certificate is, are this test's."""
    state = cluster.state / "cluster"
    arguments = [
        "--db_driver=mysql", "--db_host=127.0.0.1", f"--db_port={mariadb.port}", "--db_name=kubeflowcache",
        f"--db_user={mariadb.user}", f"--db_password={mariadb.password}",
        f"--namespace_to_watch={NAMESPACE}", "--listen_port=0",
        f"--tls_cert_filename={state / 'tls' / 'cache-server.crt'}",
        f"--tls_key_filename={state / 'tls' / 'cache-server.key'}",
    ]  # fmt: skip
    environ = {
        "DEFAULT_CACHE_STALENESS": "", "MAXIMUM_CACHE_STALENESS": "", "CACHE_IMAGE": "busybox:1",
        "CACHE_NODE_RESTRICTIONS": "false", "DBCONFIG_DRIVER": "mysql", "DBCONFIG_DB_NAME": "kubeflowcache",
        "DBCONFIG_HOST_NAME": "127.0.0.1", "DBCONFIG_PORT": str(mariadb.port),
        "NAMESPACE_TO_WATCH": NAMESPACE, "WEBHOOK_PORT": "0",
        "KUBECONFIG": str(state / "kube" / "cache-server.kubeconfig"),
        "MEMOPOD_CACHE_HEALTH_PORT": "0",
    }  # fmt: skip
    # No command: as the entry point of the image gets them.
    async with Process.start("memopod.cli", *arguments, **environ) as server:
        await register(cluster, server.ports["port"])
        await server.ready()
        first = await argo()
        assert first["metadata"]["labels"][names.KFP_CACHE_ID] == ""
        await cluster.run(first, OUTPUTS)

        async def swapped():
            pod = await argo()
            return pod if pod["spec"]["containers"][0]["image"] == "busybox:1" else None

        pod = await until(swapped, 30)
        assert pod["metadata"]["labels"][names.KFP_REUSED] == "true"

        async def completed():
            return (await cluster.get(pod))["metadata"]["labels"][names.STEP_LABEL] == names.REUSED

        await until(completed, 30)
        assert (await cluster.result(pod))["outputs"]["parameters"][0]["value"] == "hello"
        assert await server.stop() == 0
    assert "hello" not in "".join(server.lines)
    assert mariadb.password not in "".join(server.lines)


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


async def test_without_a_live_leader_pods_are_not_held(cluster, flags, argo):
    async with Process.start(*flags) as server:
        await register(cluster, server.ports["port"])
        await server.ready()
        taken = {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 4}}
        server.process.send_signal(signal.SIGSTOP)
        await cluster.client.patch(LEASES, "memopod-cache-controller", taken, namespace="memopod")
        server.process.send_signal(signal.SIGCONT)

        async def marked_only():
            pod = await argo()
            reason = pod["metadata"]["annotations"].get(names.REASON)
            return pod if reason == "no-controller" else None

        pod = await until(marked_only, 10)
        assert not is_held(pod)


async def test_a_held_pod_outlives_its_server_and_is_decided_by_the_next(cluster, flags, argo):
    async with Process.start(*flags) as server:
        await register(cluster, server.ports["port"])
        await server.ready()
        await ran(cluster, argo)
        await reused(cluster, argo)
        server.process.kill()
        await server.process.wait()
    held = await cluster.held_pod()
    async with Process.start(*flags):
        pod = await decided(cluster, held)
    assert pod["metadata"]["annotations"][names.DECISION] == names.REUSE


async def test_when_the_leader_is_killed_another_replica_takes_over_in_five_seconds(cluster, flags, argo):
    async with Process.start(*flags) as first:
        await register(cluster, first.ports["port"])
        await first.ready()
        async with Process.start(*flags) as second:
            await second.ready()
            await ran(cluster, argo)
            await reused(cluster, argo)
            first.process.kill()
            held = await cluster.held_pod()
            started = asyncio.get_running_loop().time()
            pod = await decided(cluster, held)
            took = asyncio.get_running_loop().time() - started
            assert pod["metadata"]["annotations"][names.DECISION] == names.REUSE
            assert took < 8, "5 s, and what a busy machine adds"


async def test_the_janitor_releases_what_nobody_else_does(cluster):
    kubeconfig = cluster.state / "cluster" / "kube" / "janitor.kubeconfig"
    from datetime import UTC, datetime, timedelta

    overdue = await cluster.held_pod(now=datetime.now(UTC) - timedelta(seconds=45))
    fresh = await cluster.held_pod()
    async with Process.start(
        "cache_server.janitor", "--kubeconfig", str(kubeconfig),
        "--health-host", "127.0.0.1", "--health-port", "0", "--claim-wait", "0.1",
    ) as janitor:  # fmt: skip
        await janitor.ready()
        pod = await decided(cluster, overdue)
        assert pod["metadata"]["annotations"][names.REASON] == "overdue"
        assert is_held(await cluster.get(fresh))
        assert await janitor.stop() == 0


async def test_a_port_in_use_is_one_clear_line(cluster, flags):
    async with Process.start(*flags) as server:
        again = [*flags]
        again[again.index("--listen-port") + 1] = str(server.ports["port"])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *again, stderr=asyncio.subprocess.PIPE
        )
        _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert str(server.ports["port"]).encode() in errors


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--database", "oracle://x", "expected sqlite:///PATH"),
        ("--tls-cert-file", "/does/not/exist", "/does/not/exist"),
        ("--object-store", "minio/bucket=ftp://x", "object store"),
        ("--maximum-staleness", "soon", "ISO 8601"),
    ],
)
async def test_a_bad_setting_is_one_message_and_exit_status_2(cluster, flags, flag, value, said):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *flags, flag, value, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert said in errors.decode()
    assert b"Traceback" not in errors
