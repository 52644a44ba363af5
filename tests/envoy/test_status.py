"""What can be seen of Envoy itself."""

import asyncio
import json
import socket

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

SECRET = "hunter2-of-a-user"


async def get(web, path, method="GET"):
    async with web.session.request(method, f"{web.envoy.status_url}{path}") as answer:
        return answer.status, await answer.text()


async def test_metrics_and_readiness_are_served_on_a_port_of_their_own(web):
    await web.read("GetContextTypes", service.GetContextTypesRequest(), service.GetContextTypesResponse)
    status, text = await get(web, "/stats/prometheus")
    assert status == 200
    assert 'envoy_cluster_upstream_rq_completed{envoy_cluster_name="store"}' in text
    assert await get(web, "/ready") == (200, "LIVE\n")


@pytest.mark.parametrize(
    "path", ["/", "/stats", "/clusters", "/config_dump", "/quitquitquit", "/ready/../config_dump"]
)
async def test_nothing_else_of_the_admin_interface_is(web, path):
    for method in ("GET", "POST"):
        assert (await get(web, path, method))[0] == 404
    assert (await get(web, "/stats/prometheus", "POST"))[0] == 404


async def test_the_admin_interface_is_a_socket_of_this_user_alone(envoy):
    assert envoy.socket.stat().st_mode & 0o777 == 0o600
    assert json.loads(await envoy.admin("/server_info"))["state"] == "LIVE"


def test_every_port_is_on_the_address_that_is_asked_for(start_envoy, metadata_store):
    envoy = start_envoy(metadata_store, listen_address="127.0.0.2")
    for port in (envoy.port, envoy.full_port, envoy.status_port):
        with socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


async def test_a_call_is_one_line_in_the_log_without_what_it_says(start_envoy, metadata_store, web_of):
    envoy = await asyncio.to_thread(start_envoy, metadata_store)
    async with web_of(envoy) as web:
        request = service.GetContextTypeRequest(type_name=SECRET)
        headers = {"Authorization": f"Bearer {SECRET}", "Cookie": SECRET, "X-Other": SECRET}
        await web.post("GetContextType", request, headers=headers)
        await web.post(f"GetContext?q={SECRET}", request, headers=headers)
        await web.post("PutContextType", mlmd.ContextType(name=SECRET))
    envoy.stop()  # what is buffered is written now
    lines = [json.loads(line) for line in envoy.log.read_text().splitlines() if line.startswith("{")]
    seen = {(line["path"].rpartition("/")[2], line["grpc_status"], line["listener"]) for line in lines}
    assert seen == {
        ("GetContextType", "NotFound", "read"),
        ("GetContext", "PermissionDenied", "read"),
        ("PutContextType", "PermissionDenied", "read"),
    }
    assert all(line["milliseconds"] >= 0 and line["client"] == "127.0.0.1" for line in lines)
    assert SECRET not in envoy.log.read_text()
