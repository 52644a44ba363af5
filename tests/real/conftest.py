"""A real etcd and kube-apiserver for tests: see README.md in this folder."""

import asyncio
import fcntl
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from memopod.kube import Client
from memopod.sandbox.control_plane import find_programs
from memopod.sandbox.errors import SandboxError
from tests.conftest import unavailable
from tests.real.argo import Argo
from tests.real.cluster import Cluster, until
from tests.real.kubelet import Kubelet
from tests.real.plane import start, wait_ready
from tests.real.proxy import before_api_server


@pytest.fixture(scope="session")
def plane(tmp_path_factory):
    """One etcd and API server for the whole session, whichever worker asks first."""
    try:
        find_programs()
    except SandboxError as error:
        unavailable(str(error))
    shared, session = tmp_path_factory.getbasetemp(), os.getpid()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared, session = shared.parent, os.getppid()
    with (shared / "control-plane.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = shared / "control-plane"
        if not place.exists():
            place.write_text(str(start(session, shared / "control-plane.log")))
    return wait_ready(Path(place.read_text()), shared / "control-plane.log")


@pytest.fixture(autouse=True)
async def no_connection_left():
    """Ends last in each test: what is open then would be collected, and complained of, in another.

    A connection that speaks TLS, or that a server was still accepting, ends some turns of the loop after
    whoever had it; aiohttp tells nobody when. The loop itself knows which there are.
    """
    yield
    transports = asyncio.get_running_loop()._transports
    await until(
        lambda: all(transport._sock is None for transport in transports.values()),
        "all connections have ended", limit=10,
    )  # fmt: skip


@pytest.fixture
async def admin(plane):
    """A client that may do everything."""
    async with Client.from_kubeconfig(str(plane.folder / "kubeconfig"), timeout=30.0) as client:
        yield client


@pytest.fixture
async def cluster(plane, admin, tmp_path):
    """Namespaces, accounts and permissions of this test's own; services that it starts end with it."""
    cluster = await Cluster.make(plane.folder, plane.port, admin, tmp_path)
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def play(cluster, admin):
    """`argo, kubelet = await play(version="3.5.15", ...)`: the doubles at work in `cluster.pipelines`.

    Argo has the service account that the webhook trusts. Options of either double by name; `kubelet=False`
    plays Argo alone.
    """
    async with AsyncExitStack() as stack:

        async def start(*, version="4.1.2", kubelet=True, **options):
            lags = {
                k: options.pop(k) for k in ("requeue", "pod_lag", "result_lag", "finalizer") if k in options
            }
            client = await cluster.client("argo", "argo")
            namespace = cluster.pipelines
            argo = await stack.enter_async_context(Argo.playing(client, namespace, version=version, **lags))
            if not kubelet:
                return argo
            node = await stack.enter_async_context(
                Kubelet.playing(admin, namespace, version=version, **options)
            )
            return argo, node

        yield start


@pytest.fixture
async def proxy(plane):
    """A proxy before the API server (`server=proxy.url`) that records requests, and misbehaves where told."""
    async with before_api_server(plane) as proxy:
        yield proxy
