"""What clients that are slow or demanding can do, and cannot."""

import asyncio
import contextlib
import json

import grpc
import pytest
from ml_metadata.proto import metadata_store_service_pb2 as service

SERVICE = "/ml_metadata.MetadataStoreService"
MEGABYTE = 1024 * 1024


async def test_metadata_of_sixteen_kilobytes_passes(envoy):
    for address in (envoy.address, envoy.full_address):
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary(f"{SERVICE}/GetContextTypes")
            assert await call(b"", timeout=10, metadata=[("x-large", "x" * (15 * 1024))]) is not None


async def test_cookies_that_the_store_would_refuse_stay_behind(web):
    cookies = "; ".join(f"session-{part}={'c' * 3000}" for part in range(20))
    headers = {"Cookie": cookies, "Authorization": "Bearer " + "t" * 6000}
    request, response = service.GetContextTypesRequest(), service.GetContextTypesResponse
    status, answered, body = await web.post("GetContextTypes", request, headers=headers)
    (_, message), (_, end) = web.frames(body)
    assert (status, web.trailers(end)["grpc-status"]) == (200, "0"), answered
    response.FromString(message)


async def test_more_headers_than_anybody_needs_are_refused(envoy, web):
    status, _, _ = await web.post("GetContextTypes", headers={"Cookie": "c" * 200 * 1024})
    assert status == 431
    async with grpc.aio.insecure_channel(envoy.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(f"{SERVICE}/GetContextTypes")(
                b"", timeout=10, metadata=[("x-large", "x" * 200 * 1024)]
            )
    await web.read("GetContextTypes", service.GetContextTypesRequest(), service.GetContextTypesResponse)


async def test_a_client_that_never_ends_its_request_is_cut_off(start_envoy, metadata_store):
    def sooner(config):
        for listener in config["static_resources"]["listeners"]:
            (manager,) = listener["filter_chains"][0]["filters"]
            http = manager["typed_config"]
            assert http["request_headers_timeout"] == "10s"
            http["request_headers_timeout"] = "0.5s"
            if listener["name"] == "read":
                assert http["request_timeout"] == "60s"
                http["request_timeout"] = "1s"

    async def sent(port, text):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text.encode())
        async with asyncio.timeout(30):
            answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return answer

    envoy = await asyncio.to_thread(start_envoy, metadata_store, change=sooner)
    head = f"POST {SERVICE}/GetContexts HTTP/1.1\r\nHost: x\r\n"
    for port in (envoy.port, envoy.status_port):
        assert (await sent(port, head)).startswith(b"HTTP/1.1 408")
    head += "Content-Type: application/grpc-web+proto\r\nContent-Length: 9\r\n\r\n"
    assert b"grpc-status: 4" in await sent(envoy.port, head)


async def test_a_client_that_does_not_read_costs_little_and_delays_nobody(start_envoy, grpc_server, web_of):
    large, small = b"x" * 50 * MEGABYTE, b"small"

    async def answer(request, context):
        return large if request else small

    async with grpc_server({"GetContexts": answer}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}", flags=["--log-level=error"])
        async with web_of(envoy) as web:
            await web.post("GetContexts")
            before = await allocated(envoy)
            body = b"\x00\x00\x00\x00\x01x"
            head = f"POST {SERVICE}/GetContexts HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            head += "Content-Type: application/grpc-web+proto\r\nX-Grpc-Web: 1\r\n\r\n"
            stuck = []
            for _ in range(8):
                reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port, limit=1024)
                writer.write(head.encode() + body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                stuck.append((reader, writer))
            async with asyncio.timeout(30):
                for _ in range(50):
                    _, _, got = await web.post("GetContexts")
                    assert web.frames(got)[0] == (0, small)
            assert await allocated(envoy) - before < 8 * 10 * MEGABYTE
            for reader, writer in stuck:
                async with asyncio.timeout(60):
                    rest = 0
                    while rest < len(large):
                        rest += len(await reader.read(MEGABYTE))
                writer.close()


async def paused(envoy):
    """How many answers Envoy has ceased to read, since their clients read nothing."""
    name = "cluster.store.upstream_flow_control_paused_reading_total"
    return int((await envoy.admin(f"/stats?filter=^{name}$")).rpartition(" ")[2])


async def test_a_hundred_answers_that_nobody_reads_leave_room_for_those_that_are_read(
    start_envoy, grpc_server, web_of
):
    large, unread = [b"x" * MEGABYTE] * 100, 100

    async def list_all(request, context):
        for part in large:
            yield part

    async def light(request, context):
        return b"small"

    handlers = {"GetContexts": list_all, "GetContextType": light, "PutContexts": light}
    async with grpc_server(handlers) as port, contextlib.AsyncExitStack() as stack:
        envoy = await asyncio.to_thread(
            start_envoy, f"127.0.0.1:{port}", flags=["--log-level=error"], threads=1
        )
        head = f"POST {SERVICE}/GetContexts HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        head += "Content-Type: application/grpc-web+proto\r\nX-Grpc-Web: 1\r\n\r\n"
        for _ in range(unread):
            reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port, limit=1024)
            stack.callback(writer.close)
            writer.write(head.encode() + b"\0\0\0\0\0")
            async with asyncio.timeout(30):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with asyncio.timeout(60):
            while await paused(envoy) < 60:
                pass  # it has asked
        async with web_of(envoy) as web, asyncio.timeout(30):
            for _ in range(20):
                _, _, got = await web.post("GetContextType")
                assert web.frames(got)[0] == (0, b"small")
        async with grpc.aio.insecure_channel(envoy.full_address) as channel:
            assert await channel.unary_unary(f"{SERVICE}/PutContexts")(b"", timeout=20) == b"small"


async def test_names_that_are_no_rpcs_leave_nothing_behind(envoy, web):
    def names(stats):
        return {line.partition(":")[0] for line in stats.splitlines()}

    for rpc in ("GetContextType", "PutContexts", "GetNothing"):
        await web.post(rpc)
    before = names(await envoy.admin("/stats"))
    assert any(".GetContextType." in name for name in before)
    for letter in "abcdefgh":
        for rpc in (f"Get{letter}", f"Put{letter}", f"{letter}/Get", f"GetContextType{letter}"):
            await web.post(rpc)
        for service_name in (f"ml_metadata{letter}.Other", f"grpc.health.v1.Health{letter}", letter):
            await web.post(f"../{service_name}/Get")
        await web.post(f"../grpc.health.v1.Health/{letter}")
        # Headers with which Envoy lets those obey that it takes for its own.
        await web.post("GetContextType", headers={"x-envoy-upstream-alt-stat-name": letter})
    assert names(await envoy.admin("/stats")) == before


async def test_no_client_tells_envoy_how_often_to_send_a_write_or_what_to_log(start_envoy, grpc_server):
    seen = []

    async def fail(request, context):
        seen.append(dict(context.invocation_metadata()))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    told = [
        ("x-envoy-retry-on", "5xx,unavailable"), ("x-envoy-retry-grpc-on", "unavailable"),
        ("x-envoy-max-retries", "5"), ("x-envoy-upstream-rq-timeout-ms", "1"), ("x-request-id", "hunter2"),
    ]  # fmt: skip
    async with grpc_server({"PutContexts": fail}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        async with grpc.aio.insecure_channel(envoy.full_address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"{SERVICE}/PutContexts")(b"", timeout=20, metadata=told)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "not now")
    (metadata,) = seen
    assert metadata["x-request-id"] != "hunter2"
    envoy.stop()
    assert "hunter2" not in envoy.log.read_text()


async def allocated(envoy):
    return int(json.loads(await envoy.admin("/memory"))["allocated"])
