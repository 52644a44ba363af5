"""What browsers and gRPC clients get through Envoy."""

import asyncio
import base64
import json
import socket
import struct
import urllib.request

import aiohttp
import grpc
import pytest
from ml_metadata import errors
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient

SERVICE = "/ml_metadata.MetadataStoreService"
BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"
ORIGIN = {"Origin": "https://ui.example"}


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


@pytest.fixture(scope="module")
def official(envoy):
    host, port = envoy.address.split(":")
    return MetadataStore(mlmd.MetadataStoreClientConfig(host=host, port=int(port), client_timeout_sec=30))


def frame(message):
    body = message.SerializeToString()
    return b"\x00" + struct.pack("!I", len(body)) + body


def frames(body):
    """(flag, content) of each grpc-web frame."""
    found = []
    while body:
        flag, size = struct.unpack("!BI", body[:5])
        found.append((flag, body[5 : 5 + size]))
        body = body[5 + size :]
    return found


def trailers(content):
    lines = content.decode().strip().split("\r\n")
    return dict(line.lower().split(":", 1) for line in lines)


async def post(http, envoy, rpc, message, *, content_type=BINARY, headers=()):
    """(status, headers, body) of a call as a browser's grpc-web sends it."""
    body = frame(message)
    if content_type.startswith(TEXT):
        body = base64.b64encode(body)
    sent = {"Content-Type": content_type, "X-Grpc-Web": "1", "Accept": content_type, **dict(headers)}
    async with http.post(f"{envoy.url}{SERVICE}/{rpc}", data=body, headers=sent) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_grpc_web_binary_answers_a_frame_and_a_trailer_frame(http, envoy, official):
    type_id = official.put_context_type(mlmd.ContextType(name="binary"))
    request = service.GetContextTypeRequest(type_name="binary")
    status, headers, body = await post(http, envoy, "GetContextType", request, headers=ORIGIN)
    (flag, message), (last, end) = frames(body)
    assert (status, headers["Content-Type"]) == (200, BINARY)
    assert (flag, last) == (0x00, 0x80)
    assert service.GetContextTypeResponse.FromString(message).context_type.id == type_id
    assert trailers(end)["grpc-status"].strip() == "0"


async def test_grpc_web_text_is_the_same_in_base64(http, envoy, official):
    type_id = official.put_context_type(mlmd.ContextType(name="text"))
    request = service.GetContextTypeRequest(type_name="text")
    status, headers, body = await post(http, envoy, "GetContextType", request, content_type=TEXT + "+proto")
    assert (status, headers["Content-Type"]) == (200, TEXT + "+proto")
    # Each chunk may be padded by itself.
    quads = [body[at : at + 4] for at in range(0, len(body), 4)]
    (_, message), (last, end) = frames(b"".join(base64.b64decode(quad) for quad in quads))
    assert service.GetContextTypeResponse.FromString(message).context_type.id == type_id
    assert (last, trailers(end)["grpc-status"].strip()) == (0x80, "0")


async def test_an_error_is_http_200_with_its_status_in_a_header(http, envoy):
    request = service.GetContextTypeRequest(type_name="missing")
    status, headers, body = await post(http, envoy, "GetContextType", request, headers=ORIGIN)
    assert (status, headers["grpc-status"], body) == (200, "5", b"")
    assert "No type found" in headers["grpc-message"]
    assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]


async def test_a_preflight_is_answered_for_grpc_web(http, envoy):
    asked = {
        **ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-grpc-web,x-user-agent,grpc-timeout",
    }
    async with http.options(f"{envoy.url}{SERVICE}/GetContextTypes", headers=asked) as answer:
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        allowed = answer.headers["Access-Control-Allow-Headers"].split(",")
        assert {"content-type", "x-grpc-web", "x-user-agent", "grpc-timeout"} <= set(allowed)
        assert answer.headers["Access-Control-Max-Age"] == "1728000"


async def test_an_answer_lets_a_page_of_another_origin_read_the_status(http, envoy):
    _, headers, _ = await post(
        http, envoy, "GetContextTypes", service.GetContextTypesRequest(), headers=ORIGIN
    )
    assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert {"grpc-status", "grpc-message"} <= set(headers["Access-Control-Expose-Headers"].split(","))


async def test_a_store_that_is_not_there_is_unavailable_in_both_tongues(http, start_envoy):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused
        envoy = start_envoy(f"127.0.0.1:{nobody.getsockname()[1]}")
        request = service.GetContextTypesRequest()
        status, headers, _ = await post(http, envoy, "GetContextTypes", request, headers=ORIGIN)
        assert (status, headers["grpc-status"]) == (200, "14")
        assert headers["grpc-message"] == "the metadata store cannot be reached"
        assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
        async with grpc.aio.insecure_channel(envoy.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"{SERVICE}/GetContextTypes")(b"", timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_browsers_grpc_timeout_ends_its_call(http, start_envoy):
    async def never(request, context):
        await asyncio.Event().wait()

    server = grpc.aio.server()
    handler = {"GetContextTypes": grpc.unary_unary_rpc_method_handler(never)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE[1:], handler),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{port}")
        async with asyncio.timeout(10):
            status, headers, _ = await post(
                http, envoy, "GetContextTypes", service.GetContextTypesRequest(),
                headers={"grpc-timeout": "300m"},
            )  # fmt: skip
        assert (status, headers["grpc-status"]) == (200, "4")
    finally:
        await server.stop(None)


async def test_the_official_client_works_through_the_same_port(envoy, official):
    type_id = official.put_context_type(mlmd.ContextType(name="plain"))
    official.put_contexts([mlmd.Context(type_id=type_id, name="one")])
    assert official.get_context_by_type_and_name("plain", "one").type_id == type_id
    with pytest.raises(errors.NotFoundError, match="No type found"):
        official.get_context_type("missing")
    async with StoreClient(envoy.address) as client:
        answer = await client.call("GetContextTypes", service.GetContextTypesRequest())
    assert "plain" in {known.name for known in answer.context_types}


async def test_large_messages_pass_in_both_tongues(http, envoy, official):
    type_id = official.put_artifact_type(mlmd.ArtifactType(name="large"))
    artifact = mlmd.Artifact(type_id=type_id, name="large")
    artifact.custom_properties["text"].string_value = "x" * (40 * 1024 * 1024)
    async with StoreClient(envoy.address, timeout=60) as client:
        await client.call("PutArtifacts", service.PutArtifactsRequest(artifacts=[artifact]))
        request = service.GetArtifactByTypeAndNameRequest(type_name="large", artifact_name="large")
        answer = await client.call("GetArtifactByTypeAndName", request)
        assert answer.artifact.custom_properties["text"] == artifact.custom_properties["text"]
    _, _, body = await post(http, envoy, "GetArtifactByTypeAndName", request)
    (_, message), _ = frames(body)
    assert message == answer.SerializeToString()


async def test_metadata_of_sixteen_kilobytes_passes(envoy):
    async with grpc.aio.insecure_channel(envoy.address) as channel:
        call = channel.unary_unary(f"{SERVICE}/GetContextTypes")
        assert await call(b"", timeout=10, metadata=[("x-large", "x" * (15 * 1024))]) is not None


@pytest.mark.parametrize("path", ["/", "/stats", "/other.Service/Method"])
async def test_only_the_stores_own_paths_are_routed(http, envoy, path):
    async with http.post(envoy.url + path) as answer:
        assert answer.status == 404


def test_the_admin_interface_is_on_loopback_only(start_envoy, metadata_store):
    envoy = start_envoy(metadata_store, listen_address="0.0.0.0")
    with urllib.request.urlopen(f"http://127.0.0.1:{envoy.admin_port}/listeners?format=json") as answer:
        (listener,) = json.load(answer)["listener_statuses"]
    assert listener["local_address"]["socket_address"]["address"] == "0.0.0.0"
    # Linux answers on all of 127/8, and a socket on 127.0.0.1 does not take these.
    with socket.create_connection(("127.0.0.2", envoy.port), timeout=5):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", envoy.admin_port), timeout=5)
