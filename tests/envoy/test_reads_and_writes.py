"""Which port takes which call."""

import aiohttp
import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

SERVICE = "/ml_metadata.MetadataStoreService"
BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"
REFUSED = "this port only reads: write through the full port, or to the metadata store itself"
ORIGIN = {"Origin": "https://ui.example"}

RPCS = [method.name for method in service.DESCRIPTOR.services_by_name["MetadataStoreService"].methods]
PUTS = [rpc for rpc in RPCS if rpc.startswith("Put")]
GETS = [rpc for rpc in RPCS if rpc not in PUTS]


async def status_of(address, path, **options):
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            await channel.unary_unary(path)(b"", timeout=20, **options)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def test_the_service_has_nothing_but_puts_and_gets():
    assert len(PUTS) == 12
    assert all(rpc.startswith("Get") for rpc in GETS)


@pytest.mark.parametrize("rpc", PUTS)
async def test_the_reading_port_refuses_every_write_in_every_tongue(envoy, web, rpc):
    for content_type in (BINARY, TEXT, BINARY.replace("+proto", "")):
        status, headers, body = await web.post(rpc, content_type=content_type, headers=ORIGIN)
        assert (status, headers["grpc-status"], headers["grpc-message"]) == (200, "7", REFUSED)
        assert headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
        assert headers["Content-Type"].startswith("application/grpc-web")
        assert body == b""
    refused = await status_of(envoy.address, f"{SERVICE}/{rpc}")
    assert refused == (grpc.StatusCode.PERMISSION_DENIED, REFUSED)


async def test_a_refused_write_has_not_reached_the_store(envoy, web, official):
    request = service.PutContextTypeRequest(context_type=mlmd.ContextType(name="never"))
    for path in (
        "PutContextType",
        "GetContextType/../PutContextType",
        "Get/PutContextType",
        "PutContextType?",
    ):
        _, headers, _ = await web.post(path, request)
        assert headers["grpc-status"] == "7", path
    for path in ("Get%2e%2e/PutContextType", "%50utContextType", "//PutContextType"):
        _, headers, _ = await web.post(path, request)
        assert headers["grpc-status"] != "0", path
    assert "never" not in {known.name for known in official.get_context_types()}


async def test_the_reading_port_lets_every_read_through(envoy):
    for rpc in GETS:
        code, _ = await status_of(envoy.address, f"{SERVICE}/{rpc}")
        own = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
        assert code not in own, rpc


async def test_the_full_port_takes_every_call_and_speaks_to_no_page(envoy, official):
    type_id = official.put_context_type(mlmd.ContextType(name="written"))
    assert official.get_context_type("written").id == type_id
    for rpc in PUTS:
        code, details = await status_of(envoy.full_address, f"{SERVICE}/{rpc}")
        assert details != REFUSED, rpc
        assert code != grpc.StatusCode.UNAVAILABLE, rpc


async def test_a_page_cannot_reach_the_full_port(envoy, web):
    # A page has HTTP/1.1 without TLS; the full port has HTTP/2 only, and answers nothing.
    with pytest.raises(aiohttp.ClientConnectionError):
        async with web.session.post(f"http://{envoy.full_address}{SERVICE}/PutContexts", data=b""):
            pass


@pytest.mark.parametrize("port", ["address", "full_address"])
async def test_health_is_the_stores_own(envoy, port):
    assert (await status_of(getattr(envoy, port), "/grpc.health.v1.Health/Check"))[0] == grpc.StatusCode.OK


@pytest.mark.parametrize("path", ["/", "/stats", "/ready", "/quitquitquit", "/other.Service/Method"])
async def test_anything_else_is_nowhere(envoy, web, path):
    async with web.session.post(envoy.url + path) as answer:
        assert answer.status == 404
    for address in (envoy.address, envoy.full_address):
        assert (await status_of(address, path))[0] == grpc.StatusCode.UNIMPLEMENTED
