import asyncio
import contextlib
import json
import signal
import sqlite3
import sys

import pytest

from cache_server.app import main
from cache_server.finish import is_held
from memopod.kube import LEASES
from memopod.steps import names
from tests.cache_server.marks import OUTPUTS
from tests.cache_server.service import Process, decided, register, until

NAMESPACE = "pipelines"


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
async def test_a_bad_setting_is_one_message_and_exit_status_2(flags, monkeypatch, capsys, flag, value, said):
    monkeypatch.setattr("memopod.service.startup.configure_logs", lambda *_, **__: None)
    assert main([*flags[1:], flag, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("memopod cache-server: error: ")
    assert said in line
