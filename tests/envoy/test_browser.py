"""A real browser: a page of one origin that speaks grpc-web to Envoy at another."""

import asyncio
import base64
import contextlib
import json
import os
import signal

import pytest
from aiohttp import web
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from tests.conftest import program

# What a browser's grpc-web client does: one POST, frames, the status in a trailer frame or in a header.
PAGE = """<!doctype html><meta charset="utf-8"><title>grpc-web</title><script type="module">
const given = GIVEN;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const base64 = (array) => btoa(String.fromCharCode(...array));

async function call(rpc, message, text) {
  const frame = new Uint8Array(5 + message.length);
  new DataView(frame.buffer).setUint32(1, message.length);
  frame.set(message, 5);
  const type = text ? "application/grpc-web-text" : "application/grpc-web+proto";
  const answer = await fetch(`${given.envoy}/ml_metadata.MetadataStoreService/${rpc}`, {
    method: "POST",
    headers: {"content-type": type, "accept": type, "x-grpc-web": "1", "grpc-timeout": "20S",
              "x-user-agent": "grpc-web-javascript/0.1"},
    body: text ? base64(frame) : frame,
  });
  const found = {http: answer.status, status: answer.headers.get("grpc-status"),
                 message: answer.headers.get("grpc-message"), frames: []};
  let body = new Uint8Array(await answer.arrayBuffer());
  if (text) body = bytes(new TextDecoder().decode(body).replace(/=+(?=.)/g, ""));
  while (body.length) {
    const size = new DataView(body.buffer, body.byteOffset).getUint32(1);
    const content = body.slice(5, 5 + size);
    if (body[0] & 0x80) found.status = /grpc-status: ?(\\d+)/i.exec(new TextDecoder().decode(content))[1];
    else found.frames.push(base64(content));
    body = body.slice(5 + size);
  }
  return found;
}

const told = {};
for (const [name, [rpc, message, text]] of Object.entries(given.calls)) {
  told[name] = await call(rpc, bytes(message), text).catch((error) => ({error: error.name}));
}
await fetch("/told", {method: "POST", body: JSON.stringify(told)});
</script>"""


@contextlib.asynccontextmanager
async def site(show):
    """(origin, what its page tells): a web server of one page on a port of its own."""
    told = asyncio.get_running_loop().create_future()

    async def take(request):
        told.set_result(await request.json())
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", show), web.post("/told", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://localhost:{runner.addresses[0][1]}", told
    finally:
        await runner.cleanup()


@pytest.fixture
def chromium(tmp_path):
    """Opens a page in a headless Chromium with a profile of its own, until what is awaited has come."""
    binary = program("chromium", "Chromium")

    async def visit(url, awaited):
        log = tmp_path / "chromium.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                f"--user-data-dir={tmp_path / 'profile'}", url,
                stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
            )  # fmt: skip
            try:
                return await asyncio.wait_for(awaited, 60)
            except TimeoutError:
                pytest.fail(f"the page told nothing:\n{log.read_text(errors='replace')}")
            finally:
                # With its children: a browser is many processes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    return visit


def calls(**named):
    return {
        name: (rpc, base64.b64encode(message.SerializeToString()).decode(), text)
        for name, (rpc, message, text) in named.items()
    }


@pytest.fixture(scope="module")
def known_type(client_of, metadata_store):
    return client_of(metadata_store).put_context_type(mlmd.ContextType(name="browser"))


ASKED = calls(
    binary=("GetContextType", service.GetContextTypeRequest(type_name="browser"), False),
    text=("GetContextType", service.GetContextTypeRequest(type_name="browser"), True),
    missing=("GetContextType", service.GetContextTypeRequest(type_name="nobody"), False),
    write=("PutContextType", service.PutContextTypeRequest(context_type=mlmd.ContextType(name="w")), False),
)


async def open_page(start_envoy, metadata_store, chromium, *, allowed):
    page = ""

    async def show(request):
        return web.Response(text=page, content_type="text/html")

    async with site(show) as (origin, told):
        flags = [f"--cors-origins={origin}"] if allowed else ["--cors-origins=http://ui.example"]
        envoy = await asyncio.to_thread(start_envoy, metadata_store, flags=flags)
        page = PAGE.replace("GIVEN", json.dumps({"envoy": envoy.url, "calls": ASKED}))
        return await chromium(origin, told)


async def test_a_page_of_an_allowed_origin_reads_and_is_told_why_it_may_not_write(
    start_envoy, metadata_store, chromium, known_type
):
    told = await open_page(start_envoy, metadata_store, chromium, allowed=True)
    for name in ("binary", "text"):
        assert (told[name]["http"], told[name]["status"]) == (200, "0"), told[name]
        (message,) = told[name]["frames"]
        answer = service.GetContextTypeResponse.FromString(base64.b64decode(message))
        assert answer.context_type.id == known_type
    assert (told["missing"]["http"], told["missing"]["status"], told["missing"]["frames"]) == (200, "5", [])
    assert "No type found" in told["missing"]["message"]
    assert (told["write"]["http"], told["write"]["status"]) == (200, "7")
    assert "this port only reads" in told["write"]["message"]


async def test_a_page_of_another_origin_is_told_nothing(start_envoy, metadata_store, chromium, known_type):
    told = await open_page(start_envoy, metadata_store, chromium, allowed=False)
    assert told == {name: {"error": "TypeError"} for name in ASKED}
