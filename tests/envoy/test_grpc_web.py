"""What browsers and gRPC clients get through the port that reads."""

import asyncio
import socket

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient

SERVICE = "/ml_metadata.MetadataStoreService"
BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"
ORIGIN = {"Origin": "https://ui.example"}
MESSAGE_BYTES = 100 * 1024 * 1024


async def test_grpc_web_binary_answers_a_frame_and_a_trailer_frame(web, official):
    type_id = official.put_context_type(mlmd.ContextType(name="binary"))
    request = service.GetContextTypeRequest(type_name="binary")
    answer = await web.read("GetContextType", request, service.GetContextTypeResponse)
    assert answer.context_type.id == type_id


@pytest.mark.parametrize("content_type", [TEXT, TEXT + "+proto"])
async def test_grpc_web_text_is_the_same_in_base64(web, official, content_type):
    type_id = official.put_context_type(mlmd.ContextType(name="text"))
    request = service.GetContextTypeRequest(type_name="text")
    status, headers, body = await web.post("GetContextType", request, content_type=content_type)
    assert (status, headers["Content-Type"]) == (200, TEXT + "+proto")
    (_, message), (last, end) = web.frames(web.decoded(body))
    assert service.GetContextTypeResponse.FromString(message).context_type.id == type_id
    assert (last, web.trailers(end)["grpc-status"]) == (0x80, "0")


@pytest.mark.parametrize("content_type", [BINARY, TEXT])
async def test_an_error_is_http_200_with_its_status_in_a_header(web, content_type):
    request = service.GetContextTypeRequest(type_name="missing")
    status, headers, body = await web.post(
        "GetContextType", request, content_type=content_type, headers=ORIGIN
    )
    assert (status, headers["grpc-status"], body) == (200, "5", b"")
    assert "No type found" in headers["grpc-message"]
    assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]


async def preflight(web, origin, rpc="GetContextTypes"):
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-grpc-web,x-user-agent,grpc-timeout",
    }
    async with web.session.options(f"{web.envoy.url}{SERVICE}/{rpc}", headers=asked) as answer:
        return answer.status, answer.headers


async def test_a_preflight_is_answered_for_grpc_web(web):
    status, headers = await preflight(web, ORIGIN["Origin"])
    assert status == 200
    assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert "POST" in headers["Access-Control-Allow-Methods"]
    allowed = headers["Access-Control-Allow-Headers"].split(",")
    assert {"content-type", "x-grpc-web", "x-user-agent", "grpc-timeout"} <= set(allowed)
    assert headers["Access-Control-Max-Age"] == "1728000"


async def test_an_answer_lets_a_page_of_an_allowed_origin_read_the_status(web):
    _, headers, _ = await web.post("GetContextTypes", headers=ORIGIN)
    assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert {"grpc-status", "grpc-message"} <= set(headers["Access-Control-Expose-Headers"].split(","))


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://ui.example", "https://ui.example.evil", "null"]
)
async def test_a_page_of_any_other_origin_may_read_nothing(web, origin):
    _, headers = await preflight(web, origin)
    assert "Access-Control-Allow-Origin" not in headers
    _, headers, _ = await web.post("GetContextTypes", headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in headers


async def test_a_star_in_an_origin_stays_within_its_host(start_envoy, metadata_store, web_of):
    envoy = await asyncio.to_thread(start_envoy, metadata_store, flags=["--cors-origins=https://*.example"])
    async with web_of(envoy) as web:
        for origin, allowed in {
            "https://ui.example": True,
            "https://a.b.example": True,
            "https://example": False,
            "https://evil.org/.example": False,
            "https://evil.org:1.example": False,
            "https://ui.example.evil.org": False,
        }.items():
            _, headers = await preflight(web, origin)
            assert ("Access-Control-Allow-Origin" in headers) is allowed, origin


async def test_no_other_origin_may_read_unless_it_is_set(start_envoy, metadata_store, web_of):
    envoy = await asyncio.to_thread(start_envoy, metadata_store)
    async with web_of(envoy) as web:
        _, headers = await preflight(web, ORIGIN["Origin"])
        assert "Access-Control-Allow-Origin" not in headers
        status, headers, _ = await web.post("GetContextTypes", headers=ORIGIN)
        assert status == 200
        assert "Access-Control-Allow-Origin" not in headers


async def test_a_store_that_is_not_there_is_unavailable_in_both_tongues(start_envoy, web_of):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused
        envoy = await asyncio.to_thread(
            start_envoy, f"127.0.0.1:{nobody.getsockname()[1]}", flags=["--cors-origins=*"]
        )
        async with web_of(envoy) as web:
            for content_type in (BINARY, TEXT):
                status, headers, _ = await web.post(
                    "GetContextTypes", content_type=content_type, headers=ORIGIN
                )
                assert (status, headers["grpc-status"]) == (200, "14")
                assert headers["grpc-message"] == "the metadata store cannot be reached"
                assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
        for address in (envoy.address, envoy.full_address):
            async with grpc.aio.insecure_channel(address) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(f"{SERVICE}/GetContextTypes")(b"", timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_grpc_timeout_ends_a_browsers_call_and_tells_the_store(start_envoy, grpc_server, web_of):
    remaining = asyncio.Queue()

    async def never(request, context):
        remaining.put_nowait(context.time_remaining())
        await asyncio.Event().wait()

    async with grpc_server({"GetContextTypes": never}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        async with asyncio.timeout(30), web_of(envoy) as web:
            for content_type in (BINARY, TEXT):
                status, headers, _ = await web.post(
                    "GetContextTypes", content_type=content_type, headers={"grpc-timeout": "700m"}
                )
                assert (status, headers["grpc-status"]) == (200, "4")
                assert 0 < await remaining.get() <= 0.7


async def test_the_official_client_reads_and_writes_as_at_the_store(envoy, official, client_of):
    type_id = official.put_context_type(mlmd.ContextType(name="plain"))
    official.put_contexts([mlmd.Context(type_id=type_id, name="one")])
    reader = await asyncio.to_thread(client_of, envoy.address)
    assert reader.get_context_by_type_and_name("plain", "one").type_id == type_id
    async with StoreClient(envoy.address) as client:
        answer = await client.call("GetContextTypes", service.GetContextTypesRequest())
    assert "plain" in {known.name for known in answer.context_types}


async def test_a_hundred_megabytes_pass_to_and_from_every_kind_of_client(start_envoy, grpc_server, web_of):
    # As much as fits beside its own lengths and tags.
    artifact = mlmd.Artifact(uri="x" * (MESSAGE_BYTES - 16))
    large = service.GetArtifactsResponse(artifacts=[artifact]).SerializeToString()
    assert MESSAGE_BYTES - 16 < len(large) <= MESSAGE_BYTES
    sizes = []

    async def answer(request, context):
        return large

    async def take(request, context):
        sizes.append(len(request))
        return b""

    async with grpc_server({"GetArtifacts": answer, "PutArtifacts": take}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        async with web_of(envoy) as web:
            _, _, body = await web.post("GetArtifacts")
            (_, message), (last, _) = web.frames(body)
            assert (message == large, last) == (True, 0x80)
            _, _, body = await web.post("GetArtifacts", content_type=TEXT)
            (_, message), (last, _) = web.frames(await asyncio.to_thread(web.decoded, body))
            assert (message == large, last) == (True, 0x80)
        async with StoreClient(envoy.address, timeout=60) as client:
            assert (await client.call("GetArtifacts", service.GetArtifactsRequest())).artifacts == [artifact]
        async with StoreClient(envoy.full_address, timeout=60) as client:
            await client.call("PutArtifacts", service.PutArtifactsRequest(artifacts=[artifact]))
        assert sizes == [len(large)]
