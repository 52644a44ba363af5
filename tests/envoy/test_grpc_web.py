"""What browsers and gRPC clients get through the port that reads."""

import asyncio
import base64
import socket

import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient
from tests.envoy.conftest import routes

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


async def echo(request, context):
    return b"asked for " + request


@pytest.fixture(scope="module")
def framed():
    message = b"contexts"
    return b"\0" + len(message).to_bytes(4) + message


async def sent_in_pieces(port, content_type, pieces, version="1.1"):
    """Head and body of the answer to a request whose body comes in these pieces, each by itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = sum(map(len, pieces))
    writer.write(
        f"POST {SERVICE}/GetContexts HTTP/{version}\r\nHost: x\r\nContent-Length: {size}\r\n"
        f"Content-Type: {content_type}\r\nAccept: {BINARY}\r\nConnection: close\r\n\r\n".encode()
    )
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        await writer.drain()
        await asyncio.sleep(0.01)  # so that no two pieces are read at once
        writer.write(piece)
    async with asyncio.timeout(30):
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    return head.decode().lower(), body


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 18])
async def test_a_request_arrives_whole_wherever_it_is_cut(start_envoy, grpc_server, framed, size):
    async with grpc_server({"GetContexts": echo}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        for content_type, body in ((TEXT, base64.b64encode(framed)), (BINARY, framed)):
            pieces = [body[start : start + size] for start in range(0, len(body), size)]
            _, answer = await sent_in_pieces(envoy.port, content_type, pieces)
            assert b"asked for contexts" in answer, content_type


async def test_text_that_is_no_base64_of_a_whole_request_reaches_no_store(start_envoy, grpc_server, framed):
    seen = []

    async def note(request, context):
        seen.append(request)
        return b""

    def smaller(config):
        for route in routes(config):
            buffer = route.get("typed_per_filter_config", {}).get("envoy.filters.http.buffer")
            if buffer:
                assert buffer["buffer"]["max_request_bytes"] == 16 * 1024 * 1024
                buffer["buffer"]["max_request_bytes"] = 64

    async with grpc_server({"GetContexts": note}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}", change=smaller)
        text = base64.b64encode(framed)
        padded = base64.b64encode(framed[:5]) + base64.b64encode(framed[5:])
        for bad in (text.rstrip(b"="), b"!!!!", text[:8] + b"\r\n" + text[8:], padded):
            head, _ = await sent_in_pieces(envoy.port, TEXT, [bad])
            assert head.startswith("http/1.1 200")
            assert "grpc-status: 13" in head
            assert "grpc-message: grpc_base_64" in head
        head, _ = await sent_in_pieces(envoy.port, TEXT, [b"AAAA" * 17])
        assert ("grpc-status: 8" in head, "the request is too large" in head) == (True, True)
    assert seen == []


async def test_a_proxy_that_speaks_http_1_0_gets_whole_answers(start_envoy, grpc_server, framed):
    async with grpc_server({"GetContexts": echo}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        head, body = await sent_in_pieces(envoy.port, BINARY, [framed], version="1.0")
    assert head.startswith("http/1.0 200")
    assert b"asked for contexts" in body
    assert b"grpc-status:0" in body


async def test_calls_of_one_connection_follow_each_other(web):
    for _ in range(3):
        await web.read("GetContextTypes", service.GetContextTypesRequest(), service.GetContextTypesResponse)
    assert len(web.session.connector._conns) == 1


@pytest.mark.parametrize("content_type", [BINARY, TEXT])
async def test_an_error_is_http_200_with_its_status_in_a_header(web, content_type):
    request = service.GetContextTypeRequest(type_name="missing")
    status, headers, body = await web.post(
        "GetContextType", request, content_type=content_type, headers=ORIGIN
    )
    assert (status, headers["grpc-status"], body) == (200, "5", b"")
    assert "No type found" in headers["grpc-message"]
    assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]


async def preflight(web, origin, rpc="GetContextTypes", method="POST", headers="content-type,x-grpc-web"):
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
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


@pytest.mark.parametrize("rpc", ["GetContexts", "GetLineageSubgraph", "PutContexts", "GetNothing"])
async def test_what_a_page_asks_before_a_call_is_answered_whatever_the_call(web, rpc):
    """So that the page can read why a call of it is refused."""
    for method in ("GET", "PUT", "DELETE", "POST"):
        for header in ("grpc-timeout", "authorization", "x-user-agent", "keep-alive", "custom-header-1"):
            status, headers = await preflight(web, ORIGIN["Origin"], rpc, method, header)
            assert status == 200
            assert method in headers["Access-Control-Allow-Methods"].split(", ")
            assert header in headers["Access-Control-Allow-Headers"].split(",")
            assert "Access-Control-Allow-Credentials" not in headers


async def test_an_answer_lets_a_page_of_an_allowed_origin_read_the_status(web):
    _, headers, _ = await web.post("GetContextTypes", headers=ORIGIN)
    assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert {"grpc-status", "grpc-message"} <= set(headers["Access-Control-Expose-Headers"].split(","))


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "http://ui.example", "https://ui.example.evil", "https://evilui.example",
        "https://ui.example:8443", "https://ui.example/", "https://ui.example@evil", "https://UI.example",
        "https://uiXexample", "null", "",
    ],
)  # fmt: skip
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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2H", 7200), ("3M", 180), ("90S", 90), ("45000m", 45), ("30000000u", 30), ("99999999n", 0.1),
     ("99999999H", 99999999 * 3600)],
)  # fmt: skip
async def test_every_unit_of_a_deadline_reaches_the_store(start_envoy, grpc_server, web_of, text, seconds):
    async def remaining(request, context):
        return str(context.time_remaining()).encode()

    async with grpc_server({"GetContexts": remaining}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        async with web_of(envoy) as web:
            async with asyncio.timeout(30):
                body = b""
                while not body:  # a tenth of a second may pass before it is asked
                    _, _, body = await web.post("GetContexts", headers={"grpc-timeout": text})
            found = float(web.frames(body)[0][1])
    assert seconds - 30 < found <= seconds * 1.01 + 1


@pytest.mark.parametrize("text", ["0S", "0m", "-1S", "1", "S", "1s", "1.5S", "1S,2S"])
async def test_a_deadline_that_is_none_or_over_is_no_call(start_envoy, grpc_server, web_of, text):
    seen = []

    async def note(request, context):
        seen.append(request)
        return b""

    async with grpc_server({"GetContexts": note}) as port:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        async with asyncio.timeout(30), web_of(envoy) as web:
            status, headers, _ = await web.post("GetContexts", headers={"grpc-timeout": text})
    assert (status, headers["grpc-status"]) == (200, "4" if text.startswith("0") else "13")
    assert seen == []


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
