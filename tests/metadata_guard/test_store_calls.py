"""How the store behind the guard is asked: deadlines, places, replicas."""

import asyncio
import contextlib
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_guard.guard import Guard, Refused
from metadata_guard.store import Store
from tests.metadata_guard.conftest import Known, code, stores


async def test_a_store_that_is_away_is_said_to_be(new_port):
    async with Store.channel(f"127.0.0.1:{new_port}") as channel:
        guard = Guard(Known(), Store(channel))
        status, message = await code(guard.call("GetContexts", b"", "Bearer team-a", 20))
    assert (status, message) == (grpc.StatusCode.UNAVAILABLE, "the store failed at GetContexts")


@pytest.fixture
def new_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def answering(seen, seconds=0):
    """Handlers of a store that holds one context of team-a, and notes the time that each call is given.

    `seconds`: what the call takes.
    """

    async def contexts(request, context):
        seen.append(context.time_remaining())
        await asyncio.sleep(seconds)
        found = mlmd.Context(id=1, type="run")
        found.custom_properties["namespace"].string_value = "team-a"
        return service.GetContextsByIDResponse(contexts=[found]).SerializeToString()

    return {"GetContexts": contexts, "GetContextsByID": contexts}


async def test_each_call_to_the_store_is_given_the_time_that_is_left():
    seen = []
    async with stores(answering(seen, seconds=0.3)) as (channel, _):
        async with asyncio.timeout(30):
            while len(seen) < 2:  # the list, and whose they are; a busy machine may not get so far
                seen.clear()
                # Below a second gRPC passes milliseconds on; above, it rounds up by as much as a second.
                with contextlib.suppress(Refused):
                    await Guard(Known(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 0.95)
        assert seen[0] <= 0.95
        assert seen[1] <= 0.65
        status, message = await code(
            Guard(Known(), Store(channel)).call("GetContexts", b"", "Bearer team-a", 0.3)
        )
    assert (status, message) == (grpc.StatusCode.DEADLINE_EXCEEDED, "GetContexts did not end in time")


async def test_so_many_calls_read_the_store_at_once_and_so_many_wait():
    under_way, most, go = 0, 0, asyncio.Event()

    async def contexts(request, context):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go.wait()
        under_way -= 1
        return b""

    async with stores({"GetContexts": contexts}) as (channel, _):
        guard = Guard(Known(), Store(channel), concurrency=2)
        calls = [
            asyncio.create_task(guard.call("GetContexts", b"", "Bearer team-a", 30)) for _ in range(2 + 16)
        ]
        async with asyncio.timeout(30):
            while under_way < 2:  # noqa: ASYNC110 (any condition)
                await asyncio.sleep(0)
        refused = await code(guard.call("GetContexts", b"", "Bearer team-a", 30))
        assert refused[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        go.set()
        assert await asyncio.gather(*calls) == [b""] * 18
        assert most == 2
        assert await guard.call("GetContexts", b"", "Bearer team-a", 30) == b""


async def test_every_replica_of_the_store_that_serves_is_asked():
    first, second = [], []
    async with stores(answering(first), answering(second)) as (channel, healths):
        guard = Guard(Known(), Store(channel))
        for status in healths:
            await status.set("", health_pb2.HealthCheckResponse.SERVING)

        async def ask_until(condition):
            async with asyncio.timeout(30):
                while not condition():
                    await guard.call("GetContexts", b"", "Bearer team-a", 20)

        await ask_until(lambda: first and second)
        await healths[0].set("", health_pb2.HealthCheckResponse.NOT_SERVING)

        async def spared():
            first.clear()
            second.clear()
            for _ in range(2):
                await guard.call("GetContexts", b"", "Bearer team-a", 20)
            return not first

        async with asyncio.timeout(30):
            while not await spared():
                pass
        assert len(second) == 4


async def test_what_the_guard_does_not_know_of_a_request_never_reaches_the_store():
    seen = []

    async def contexts(request, context):
        seen.append(request)
        return b""

    known = service.GetContextsByIDRequest(context_ids=[7]).SerializeToString()
    unknown = b"\xa2\x06\x03all"  # field 100, a text
    async with stores({"GetContextsByID": contexts}) as (channel, _):
        await Guard(Known(), Store(channel)).call("GetContextsByID", known + unknown, "Bearer team-a", 20)
    assert seen == [known]
