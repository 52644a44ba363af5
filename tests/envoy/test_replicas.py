"""Several stores behind one Envoy."""

import asyncio
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from tests.envoy.conftest import routes

SERVICE = "/ml_metadata.MetadataStoreService"


async def call(channel, rpc, request=b""):
    return await channel.unary_unary(f"{SERVICE}/{rpc}")(request, timeout=30)


async def eventually(condition):
    """Wait for Envoy's workers, to whom its main thread tells what it knows."""
    async with asyncio.timeout(30):
        while not await condition():
            pass  # it has asked a number of times


async def test_readers_see_nothing_of_a_replica_that_is_killed(start_envoy, start_store, client_of, web_of):
    stores = [await asyncio.to_thread(start_store)]
    stores.append(await asyncio.to_thread(start_store, database=stores[0].database))
    envoy = await asyncio.to_thread(start_envoy, *(store.address for store in stores))
    await envoy.healthy(2)
    client = await asyncio.to_thread(client_of, stores[0].address)
    client.put_context_type(mlmd.ContextType(name="known"))
    request = service.GetContextTypeRequest(type_name="known")
    wanted = service.GetContextTypeResponse
    served, stop = asyncio.Semaphore(0), asyncio.Event()

    async def read_plain(channel):
        while not stop.is_set():
            await call(channel, "GetContextType", request.SerializeToString())
            served.release()

    async def read_as_browser(web):
        while not stop.is_set():
            await web.read("GetContextType", request, wanted)
            served.release()

    async def more(count):
        """Wait until so many further reads were answered."""
        for _ in range(count):
            await served.acquire()

    async with (
        web_of(envoy) as web,
        grpc.aio.insecure_channel(envoy.address) as channel,
        asyncio.timeout(90),
        asyncio.TaskGroup() as group,
    ):
        for _ in range(8):
            group.create_task(read_plain(channel))
            group.create_task(read_as_browser(web))
        await more(300)
        await asyncio.to_thread(stores[1].kill)
        await more(300)
        await envoy.healthy(1)
        # Those that found it gone told the others, before its next check.
        assert "ejections_enforced_total: 0" not in await envoy.admin(
            "/stats?filter=^cluster.store.outlier_detection.ejections_enforced_total"
        )
        stores[1] = await asyncio.to_thread(start_store, database=stores[0].database, port=stores[1].port)
        await envoy.healthy(2)
        await more(300)
        await asyncio.to_thread(stores[0].kill)
        await more(300)
        stop.set()


async def counting(calls, code=grpc.StatusCode.UNAVAILABLE):
    async def handle(request, context):
        calls.append(request)
        await context.abort(code, "not now")

    return handle


async def test_a_read_is_asked_again_and_a_write_never(start_envoy, grpc_server):
    reads, writes = [], []
    handlers = {"GetContexts": await counting(reads), "PutContexts": await counting(writes)}
    async with grpc_server(handlers) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        for address, rpc, seen, times in (
            (envoy.address, "GetContexts", reads, 4),
            (envoy.full_address, "PutContexts", writes, 1),
        ):
            async with grpc.aio.insecure_channel(address) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(channel, rpc, b"")
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "not now")
            assert len(seen) == times


async def test_a_quick_read_of_a_replica_that_hangs_is_answered_by_another(start_envoy, grpc_server):
    asked = []

    async def hang(request, context):
        asked.append(request)
        await asyncio.Event().wait()

    async def answer(request, context):
        return b"here"

    def sooner(config):
        for route in routes(config):
            retries = route.get("route", {}).get("retry_policy", {})
            if not retries:
                continue
            if "GetContextType)" in str(route["match"]) or "GetContextType|" in str(route["match"]):
                assert retries["per_try_timeout"] == "5s"
                retries["per_try_timeout"] = "0.3s"
            else:  # what may take long is not cut off
                assert "per_try_timeout" not in retries

    async with (
        grpc_server({"GetContextType": hang}) as hanging,
        grpc_server({"GetContextType": answer}) as well,
    ):
        stores = [f"127.0.0.1:{port}" for port in (hanging, well)]
        envoy = await asyncio.to_thread(start_envoy, *stores, change=sooner)
        for address in (envoy.address, envoy.full_address):
            asked.clear()
            async with grpc.aio.insecure_channel(address) as channel:

                async def hung(channel=channel):
                    assert await call(channel, "GetContextType") == b"here"
                    return asked

                await eventually(hung)


async def test_no_answer_of_a_replica_sends_it_away(start_envoy, grpc_server):
    calls = []
    async with grpc_server({"GetContexts": await counting(calls, grpc.StatusCode.INTERNAL)}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        async with grpc.aio.insecure_channel(envoy.address) as channel:
            for _ in range(30):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(channel, "GetContexts")
                assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert len(calls) == 30
        assert "ejections_active: 0" in await envoy.admin("/stats?filter=ejections_active")


class Replica:
    """A bare gRPC server with a health service, answering its own name."""

    def __init__(self):
        self.health = health.aio.HealthServicer()
        self.server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        handler = {"GetContexts": grpc.unary_unary_rpc_method_handler(self.answer)}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE[1:], handler),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self.name = str(self.port).encode()

    async def answer(self, request, context):
        return self.name


@pytest.fixture
async def replicas():
    started = [Replica(), Replica()]
    for replica in started:
        await replica.server.start()
    yield started
    for replica in started:
        await replica.server.stop(None)


async def test_each_call_of_one_connection_goes_to_whichever_replica_is_free(start_envoy, replicas):
    envoy = await asyncio.to_thread(start_envoy, *(replica.address for replica in replicas))
    await envoy.healthy(2)
    for address in (envoy.address, envoy.full_address):
        async with grpc.aio.insecure_channel(address) as channel:

            async def balanced(channel=channel):
                answers = await asyncio.gather(*(call(channel, "GetContexts") for _ in range(100)))
                shares = Counter(answers)
                return min(shares[replica.name] for replica in replicas) >= 20

            await eventually(balanced)


async def test_a_replica_whose_database_is_away_gets_no_calls_while_another_has_its_own(
    start_envoy, replicas
):
    envoy = await asyncio.to_thread(start_envoy, *(replica.address for replica in replicas))
    async with grpc.aio.insecure_channel(envoy.address) as channel:
        await envoy.healthy(2)
        away = health_pb2.HealthCheckResponse.NOT_SERVING
        await replicas[0].health.set("", away)
        await envoy.healthy(1)

        async def spared():
            return {await call(channel, "GetContexts") for _ in range(20)} == {replicas[1].name}

        await eventually(spared)
        # With all away, they say themselves what is wrong.
        await replicas[1].health.set("", away)
        await envoy.healthy(0)
        assert await call(channel, "GetContexts") in {replica.name for replica in replicas}
