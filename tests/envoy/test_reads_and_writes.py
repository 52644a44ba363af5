"""Which port takes which call."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import grpc
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service
from yarl import URL

from memopod.proxy.reads import READS

SERVICE = "/ml_metadata.MetadataStoreService"
BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"
REFUSED = "this port only reads: write through the full port, or to the metadata store itself"
ORIGIN = {"Origin": "https://ui.example"}

RPCS = [method.name for method in service.DESCRIPTOR.services_by_name["MetadataStoreService"].methods]
PUTS = [rpc for rpc in RPCS if rpc.startswith("Put")]
GETS = [rpc for rpc in RPCS if rpc not in PUTS]


async def status_of(address, path, *, request=b""):
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            await channel.unary_unary(path)(request, timeout=20)
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


DISGUISES = (
    "/PutContextType", "/PutContextType?", "/PutContextType?GetContextType", "/PutContextType/",
    "/putcontexttype", "/PUTCONTEXTTYPE", "/%50utContextType", "/%2550utContextType", "//PutContextType",
    "/PutContextType;GetContextType", "/GetContextType/../PutContextType", "/Get/PutContextType",
    "/Get%2e%2e/PutContextType", "/Get%2f..%2fPutContextType", f"/%2e%2e{SERVICE}/PutContextType",
    "%2fPutContextType", "\\PutContextType", "/PutContextTypeGetContextType", "/GetContextType/",
    "/DeleteContexts", "/RestoreEverything", "/ImportGetContexts", "/getContexts", "",
)  # fmt: skip


@pytest.mark.parametrize("path", DISGUISES)
async def test_a_write_in_disguise_and_a_method_of_tomorrow_are_refused(envoy, web, official, path):
    request = service.PutContextTypeRequest(context_type=mlmd.ContextType(name="never"))
    payload = request.SerializeToString()
    for name in {
        SERVICE + path,
        "/" + SERVICE + path,
        SERVICE.upper() + path,
        "/%6dl_metadata.v2.Store" + path,
    }:
        for content_type in (BINARY, "application/grpc", "text/plain"):
            async with web.session.post(
                URL(envoy.url + name, encoded=True), headers={"Content-Type": content_type},
                data=b"\0" + len(payload).to_bytes(4) + payload,
            ) as answer:  # fmt: skip
                if content_type == "text/plain":
                    assert answer.status == 403
                else:
                    assert (answer.status, answer.headers["grpc-status"]) == (200, "7")
        refused = await status_of(envoy.address, name, request=payload)
        assert refused == (grpc.StatusCode.PERMISSION_DENIED, REFUSED)
    assert "never" not in {known.name for known in official.get_context_types()}


@pytest.mark.parametrize(
    ("method", "content_type"),
    [
        ("GET", BINARY), ("PUT", BINARY), ("DELETE", "application/grpc"),
        ("POST", "text/plain"), ("POST", "application/json"), ("POST", "application/grpc-web+json"),
        ("POST", "application/grpc-webX"), ("POST", "application/grpcX"), ("POST", ""),
    ],
)  # fmt: skip
async def test_a_read_that_no_store_would_take_does_not_reach_one(envoy, web, method, content_type):
    """A store resets such a call: it would be asked again elsewhere, and called a failure of the store."""
    before = await envoy.hosts()
    headers = {"Content-Type": content_type, "Origin": "https://other.example"}
    async with web.session.request(
        method, f"{envoy.url}{SERVICE}/GetContextTypes", data=b"\0\0\0\0\0", headers=headers
    ) as answer:
        if content_type.startswith("application/grpc"):
            assert (answer.status, answer.headers["grpc-status"]) == (200, "3")
            assert "expected POST and the content type" in answer.headers["grpc-message"]
        else:
            assert answer.status == 415
    assert await envoy.hosts() == before


def test_the_reads_are_exactly_those_of_the_service():
    assert sorted(READS) == sorted(GETS)


@pytest.mark.parametrize("port", ["address", "full_address"])
async def test_every_read_reaches_the_store_under_its_own_name(start_envoy, grpc_server, port):
    def named(rpc):
        async def answer(request, context):
            return rpc.encode() + request

        return answer

    async with grpc_server({rpc: named(rpc) for rpc in RPCS}) as store:
        envoy = await asyncio.to_thread(start_envoy, f"127.0.0.1:{store}")
        async with grpc.aio.insecure_channel(getattr(envoy, port)) as channel:
            for rpc in RPCS if port == "full_address" else GETS:
                answer = await channel.unary_unary(f"{SERVICE}/{rpc}")(b" asked", timeout=20)
                assert answer == rpc.encode() + b" asked"


async def test_the_full_port_writes(envoy, official):
    type_id = official.put_context_type(mlmd.ContextType(name="written"))
    assert official.get_context_type("written").id == type_id


async def test_a_page_cannot_reach_the_full_port(envoy, web):
    # Without TLS a page has HTTP/1.1; the full port has HTTP/2 only, and answers nothing.
    with pytest.raises(aiohttp.ClientConnectionError):
        async with web.session.post(f"http://{envoy.full_address}{SERVICE}/PutContexts", data=b""):
            pass


async def http2_status(port, content_type, path, method="POST"):
    """The HTTP status of an empty gRPC message that is sent as a browser with HTTP/2 would send it."""

    def frame(kind, flags, stream, payload=b""):
        return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload

    fields = {":method": method, ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    fields["content-type"] = content_type
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
    writer.write(frame(1, 4, 1, block) + frame(0, 1, 1, b"\0\0\0\0\0"))
    async with asyncio.timeout(30):
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == 1:  # HEADERS, with a static entry of the table first
                writer.close()
                return {0x88: 200, 0x8D: 404}[payload[0]]


async def test_the_full_port_takes_grpcs_own_content_type_alone(envoy, official):
    for kind in ("application/grpc", "application/grpc+proto"):
        assert await http2_status(envoy.full_port, kind, f"{SERVICE}/GetContextTypes") == 200
        assert await http2_status(envoy.full_port, kind, f"{SERVICE}/PutContexts") == 200
    # What a page may send elsewhere without a preflight, and what a preflight would ask for.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", BINARY, TEXT):
        for rpc in ("PutContexts", "GetContextTypes"):
            assert await http2_status(envoy.full_port, kind, f"{SERVICE}/{rpc}") == 404, kind
    before = await envoy.hosts("store-full")
    for method in ("GET", "PUT", "OPTIONS"):
        # Envoy's own answer, which is UNIMPLEMENTED.
        await http2_status(envoy.full_port, "application/grpc", f"{SERVICE}/GetContextTypes", method)
    assert await envoy.hosts("store-full") == before


def test_beside_a_guard_no_port_leads_past_it_unless_it_is_asked_for(start_envoy, metadata_store):
    flags = [f"--guard={metadata_store}"]
    envoy = start_envoy(metadata_store, flags=flags, given_full_port=False)
    assert set(listening(envoy.process.pid)) == {envoy.port, envoy.status_port}
    envoy = start_envoy(metadata_store, flags=flags)
    assert set(listening(envoy.process.pid)) == {envoy.port, envoy.full_port, envoy.status_port}


def listening(pid):
    """The TCP ports on which a process listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(descriptor.readlink()))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in inodes:
            yield int(local.partition(":")[2], 16)


@pytest.mark.parametrize("port", ["address", "full_address"])
async def test_health_is_the_stores_own(envoy, port):
    assert (await status_of(getattr(envoy, port), "/grpc.health.v1.Health/Check"))[0] == grpc.StatusCode.OK


@pytest.mark.parametrize("path", ["/", "/stats", "/ready", "/quitquitquit", "/other.Service/Method"])
async def test_anything_else_is_nowhere(envoy, web, path):
    async with web.session.post(envoy.url + path) as answer:
        assert answer.status == 404
    for address in (envoy.address, envoy.full_address):
        assert (await status_of(address, path))[0] == grpc.StatusCode.UNIMPLEMENTED
