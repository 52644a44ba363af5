"""The guard as a process: its flags, its ports, and what it says of itself."""

import asyncio
import contextlib

import grpc
import pytest
import yaml
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_guard.app import serve
from metadata_guard.settings import Settings
from tests.envoy.conftest import EnvoyProcess, free_port
from tests.envoy.test_tls import Authority, shown

SERVICE = "/ml_metadata.MetadataStoreService"
BEARER = [("authorization", "Bearer team-a")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"listen_address": "0.0.0.0"}, "--listen-address 0.0.0.0: expected --tls-certificate"),
        ({"listen_address": "::"}, "--listen-address ::: expected --tls-certificate"),
        ({"tls_key": "k"}, "--tls-certificate and --tls-key: expected both"),
        ({"tls_client_ca": "c"}, "--tls-client-ca: expected --tls-certificate"),
        ({"store_ca": "c"}, "expected --store-tls with it"),
        ({"store_key": "k", "store_tls": True}, "--store-certificate and --store-key: expected both"),
        ({"concurrency": 0}, "--concurrency: expected at least 1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flags_name(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_on_the_machine_itself_or_with_a_certificate_it_may_listen():
    for host in ("127.0.0.1", "::1", "localhost"):
        Settings(listen_address=host)
    Settings(listen_address="::", tls_certificate="c", tls_key="k")


@pytest.fixture
async def kubeconfig(tmp_path):
    """Of an API server that takes every token for a service account of the namespace that it names."""

    async def review(request):
        token = (await request.json())["spec"]["token"]
        user = {"username": f"system:serviceaccount:{token}:x", "groups": [f"system:serviceaccounts:{token}"]}
        return web.json_response({"status": {"authenticated": True, "user": user}}, status=201)

    app = web.Application()
    app.add_routes([web.post("/apis/authentication.k8s.io/v1/tokenreviews", review)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    path = tmp_path / "kubeconfig"
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context],
        "clusters": [cluster], "users": [{"name": "u", "user": {"token": "t"}}],
    }))  # fmt: skip
    yield str(path)
    await runner.cleanup()


@contextlib.asynccontextmanager
async def store(credentials=None):
    """A bare gRPC server in place of a store: (port, its health)."""

    async def types(request, context):
        return service.GetContextTypesResponse().SerializeToString() + b"\x0a\x00"

    server, status = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    made = {"GetContextTypes": grpc.unary_unary_rpc_method_handler(types)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE[1:], made),))
    if credentials:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield port, status
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def guard(**values):
    """A guard; yields its port."""
    port, stop = free_port(), asyncio.Event()
    settings = Settings(grpc_port=port, health_host="127.0.0.1", health_port=0, **values)
    task = asyncio.create_task(serve(settings, stop))
    try:
        yield port
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def test_a_renewed_certificate_is_shown_without_a_restart(kubeconfig, tmp_path):
    authority = Authority(tmp_path)
    pair = authority.issue("guard.example")
    async with (
        store() as (port, _),
        guard(
            kubeconfig=kubeconfig, store=f"127.0.0.1:{port}", tls_certificate=str(pair.certificate),
            tls_key=str(pair.key), listen_address="0.0.0.0",
        ) as guarded,
    ):  # fmt: skip
        for _ in range(3):
            async with asyncio.timeout(30):
                now = None
                while now != pair.certificate.read_text():
                    with contextlib.suppress(ConnectionRefusedError):  # it starts
                        now = await asyncio.to_thread(shown, guarded)
            pair.key.unlink()  # in the middle of a renewal the certificate of before is good
            before = await asyncio.to_thread(shown, guarded)
            assert before == pair.certificate.read_text()
            authority.issue("guard.example")
            assert pair.certificate.read_text() != before


async def test_who_shows_two_tokens_or_half_a_one_is_nobody(kubeconfig):
    async with (
        store() as (port, _),
        guard(kubeconfig=kubeconfig, store=f"127.0.0.1:{port}") as guarded,
        grpc.aio.insecure_channel(f"127.0.0.1:{guarded}") as channel,
    ):
        call = channel.unary_unary(f"{SERVICE}/GetContextTypes")
        await call(b"", metadata=BEARER, timeout=30, wait_for_ready=True)
        other = ("authorization", "Bearer team-b")
        for metadata in (
            [*BEARER, other],
            [other, *BEARER],
            [*BEARER, *BEARER],
            [("authorization", "Bearer")],
            [],
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=metadata, timeout=30)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert "expected the metadata `authorization: Bearer TOKEN`" in caught.value.details()


async def until_health(port, wanted):
    """Wait until the guard says so of itself."""
    async with asyncio.timeout(30), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while (
            await check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30)
        ).status != wanted:
            pass  # it has asked


async def test_it_serves_as_long_as_its_store_says_that_it_does(kubeconfig):
    said = health_pb2.HealthCheckResponse
    async with (
        store() as (port, status),
        guard(kubeconfig=kubeconfig, store=f"127.0.0.1:{port}") as guarded,
    ):
        for wanted in (said.SERVING, said.NOT_SERVING, said.SERVING):
            await status.set("", wanted)
            await until_health(guarded, wanted)


async def test_both_hops_speak_tls_and_show_certificates(kubeconfig, tmp_path):
    authority = Authority(tmp_path)
    of_store, of_guard, of_envoy = (
        authority.issue(f"{name}.example") for name in ("store", "guard", "envoy")
    )
    ca = authority.file.read_bytes()
    credentials = grpc.ssl_server_credentials(
        [(of_store.key.read_bytes(), of_store.certificate.read_bytes())], ca, True
    )
    async with (
        store(credentials) as (port, _),
        guard(
            kubeconfig=kubeconfig, store=f"127.0.0.1:{port}", store_tls=True, store_ca=str(authority.file),
            store_name="store.example", store_certificate=str(of_guard.certificate),
            store_key=str(of_guard.key), listen_address="0.0.0.0",
            tls_certificate=str(of_guard.certificate), tls_key=str(of_guard.key),
            tls_client_ca=str(authority.file),
        ) as guarded,
    ):  # fmt: skip
        envoy = await asyncio.to_thread(
            EnvoyProcess, tmp_path, f"127.0.0.1:{port}",
            flags=[
                f"--guard=127.0.0.1:{guarded}", "--guard-tls", f"--guard-ca={authority.file}",
                "--guard-name=guard.example", f"--guard-certificate={of_envoy.certificate}",
                f"--guard-key={of_envoy.key}",
            ],
        )  # fmt: skip
        try:
            async with grpc.aio.insecure_channel(envoy.address) as channel:
                call = channel.unary_unary(f"{SERVICE}/GetContextTypes")
                answer = await call(b"", metadata=BEARER, timeout=30, wait_for_ready=True)
            assert len(service.GetContextTypesResponse.FromString(answer).context_types) == 1
        finally:
            envoy.stop()
        stranger = grpc.ssl_channel_credentials(ca)
        async with grpc.aio.secure_channel(f"127.0.0.1:{guarded}", stranger) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"{SERVICE}/GetContextTypes")(b"", metadata=BEARER, timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
