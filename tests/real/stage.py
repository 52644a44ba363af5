"""A cache server, a janitor and all that they need, each behind something that can be made to fail."""

import asyncio
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import quote

import aiohttp
import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from moto.server import ThreadedMotoServer

from memopod.kube import Client
from memopod.steps import names
from memopod.steps.times import from_text
from tests.real.argo import Argo, Step, only_default_artifact
from tests.real.cluster import Cluster, Service, until
from tests.real.kubelet import Kubelet, default_outputs
from tests.real.proxy import Proxy, before_api_server

ENDPOINT, BUCKET = "minio-service.kubeflow:9000", "mlpipeline"
"""Where the recorded workflows keep their artifacts."""
HOLD_SECONDS = 6.0
LATE_SECONDS = 6.0
"""How long after `hold-until` a Pod may still be held: a look each second, the claim's two, some load."""


@dataclass
class Stage:
    """Made by `staged`."""

    cluster: Cluster
    api: Proxy
    store: Proxy
    database: object
    redis: object
    server: Service
    argo: Argo
    kubelet: Kubelet
    certificate: tuple

    async def load(self, count, rate=None):
        """Start workflows of one step: a hit, a miss, one with an artifact, in turn; `rate` each second."""
        runs = []
        begun = asyncio.get_running_loop().time()
        for number in range(count):
            if rate:
                await asyncio.sleep(begun + number / rate - asyncio.get_running_loop().time())
            runs.append(await self.argo.submit(kinds()[number % 3]))
        return runs

    async def held(self):
        """The Pods that are held now."""
        return [
            p
            for p in await self.cluster.pods()
            if p["metadata"]["labels"].get(names.STEP_LABEL) == names.HELD
        ]

    async def idle(self):
        return not await self.held()

    async def check(self, runs):
        """No Pod was refused, none held for too long, none lost, none finished wrongly."""
        for run in runs:
            assert await run.end(60) == "Succeeded", run.nodes
        ran = self.kubelet.ran
        assert len(ran) == len(set(ran))
        pods = {pod["metadata"]["name"]: pod for pod in await self.cluster.pods()}
        for run in runs:
            pod = pods[run.pod_name()]
            reused = pod["metadata"]["labels"].get(names.STEP_LABEL) == names.REUSED
            assert reused == (run.pod_name() not in ran), pod["metadata"]
            assert_right(run)
            assert overdue(pod) <= timedelta(seconds=LATE_SECONDS), pod["metadata"]


def kinds():
    """A step that is known, one that nobody ran, a known one with an artifact."""
    return (
        Step(message="known"),
        Step(message=f"new-{uuid.uuid4().hex}"),
        Step(sample="artifacts.make", change=only_default_artifact),
    )


def assert_right(run):
    outputs, step = run.nodes["make"].outputs, run.steps["make"]
    assert outputs["exitCode"] == "0"
    if step.sample == "artifacts.make":
        (artifact,) = outputs["artifacts"]
        assert artifact["s3"]["key"].endswith("/default.tgz")
    else:
        (parameter,) = outputs["parameters"]
        assert parameter["value"] == f"Output of echo {step.message} > /tmp/o"


def overdue(pod):
    """How long after `hold-until` the Pod was let go or finished (whole seconds); negative before."""
    until_then = from_text(pod["metadata"]["annotations"].get(names.HOLD_UNTIL))
    if until_then is None:
        return timedelta()
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return from_text(ended["startedAt"]) - until_then


@asynccontextmanager
async def staged(plane, folder, postgresql, redis, *flags, hold=HOLD_SECONDS):
    moto = ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    host, port = moto.get_host_and_port()
    async with AsyncExitStack() as stack:
        stack.callback(moto.stop)
        admin = await stack.enter_async_context(
            Client.from_kubeconfig(str(plane.folder / "kubeconfig"), timeout=30.0)
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        api = await stack.enter_async_context(before_api_server(plane))
        store = await stack.enter_async_context(Proxy.running(f"http://{host}:{port}"))
        cluster = await Cluster.make(plane.folder, plane.port, admin, folder)
        stack.push_async_callback(cluster.close)
        bucket = f"http://{host}:{port}/{BUCKET}"
        await (await session.put(bucket)).read()
        certificate = copied(plane, folder)
        server = await cluster.cache_server(
            "--artifact-memory", 0,  # each decision asks the object store
            "--hold-timeout", hold, "--late-margin", 2, "--decision-timeout", 2, "--settle-time", 0.1,
            "--redis", f"redis://127.0.0.1:{redis.port}/0",
            "--object-store", f"{ENDPOINT}/{BUCKET}=s3://{BUCKET}?endpoint={store.url}&region=us-east-1",
            *flags,
            database=await new_database(postgresql), server=api.url, certificate=certificate,
            env={"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
        )  # fmt: skip
        await cluster.janitor(server=api.url)
        argo_client = await cluster.client("argo", "argo")
        argo = await stack.enter_async_context(Argo.playing(argo_client, cluster.pipelines))

        async def write(pod):
            for artifact in default_outputs(pod).get("artifacts", ()):
                url = f"{bucket}/{artifact['s3']['key']}"
                async with session.put(url, data=b"content") as answer:
                    assert answer.status == 200

        kubelet = await stack.enter_async_context(Kubelet.playing(admin, cluster.pipelines, takes=write))
        stage = Stage(cluster, api, store, postgresql, redis, server, argo, kubelet, certificate)
        for step in (kinds()[0], kinds()[2]):
            run = await argo.submit(step)
            assert await run.end() == "Succeeded"
            await until(partial(recorded, server, run.pod_name()), "a step is recorded")
        yield stage


def recorded(server, pod):
    return pod in [line["pod"] for line in server.lines("recorded")]


async def new_database(server):
    name = f"t{uuid.uuid4().hex[:12]}"
    login = {"host": "127.0.0.1", "port": server.port, "user": server.user, "password": server.password}
    connection = await asyncpg.connect(**login, database="postgres")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return f"postgresql://{server.user}:{quote(server.password, safe='')}@127.0.0.1:{server.port}/{name}"


def copied(plane, folder):
    """The webhook's certificate and key, in files of this test's own."""
    pair = folder / "webhook.crt", folder / "webhook.key"
    for path, name in zip(pair, ("cache-server.crt", "cache-server.key"), strict=True):
        path.write_bytes((plane.folder / "tls" / name).read_bytes())
    return pair


@contextmanager
def expired(plane_folder, pair):
    """The certificate in `pair` is one that ended an hour ago, until the context ends."""
    certificate, key = pair
    before = certificate.read_bytes()
    current = x509.load_pem_x509_certificate(before)
    authority = x509.load_pem_x509_certificate((plane_folder / "tls" / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((plane_folder / "tls" / "ca.key").read_bytes(), None)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(current.subject)
        .issuer_name(authority.subject)
        .public_key(serialization.load_pem_private_key(key.read_bytes(), None).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(hours=1))
    )
    for extension in current.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate.write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    try:
        yield
    finally:
        certificate.write_bytes(before)
