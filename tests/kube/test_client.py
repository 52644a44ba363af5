import asyncio
import json
from contextlib import aclosing

import pytest
import yaml

from memopod.kube import (
    CONFIG_MAPS,
    PODS,
    Client,
    ConfigurationError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Unavailable,
)

NS = "pipelines"


async def config_map(client, name, **rest):
    return await client.create(CONFIG_MAPS, {"metadata": {"name": name}, **rest}, namespace=NS)


async def test_objects_are_created_read_changed_and_deleted(client):
    created = await config_map(client, "a", data={"k": "1"})
    assert await client.get(CONFIG_MAPS, "a", namespace=NS) == created
    replaced = await client.replace(CONFIG_MAPS, "a", {**created, "data": {"k": "2"}}, namespace=NS)
    assert replaced["data"] == {"k": "2"}
    merged = await client.patch(CONFIG_MAPS, "a", {"data": {"l": "3"}}, namespace=NS)
    assert merged["data"] == {"k": "2", "l": "3"}
    removed = await client.patch(CONFIG_MAPS, "a", [{"op": "remove", "path": "/data/k"}], namespace=NS)
    assert removed["data"] == {"l": "3"}
    await client.delete(CONFIG_MAPS, "a", namespace=NS, uid=created["metadata"]["uid"])
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, "a", namespace=NS)


async def test_refusals_have_the_type_that_fits(client):
    created = await config_map(client, "a")
    with pytest.raises(Conflict) as exists:
        await config_map(client, "a")
    assert exists.value.reason == "AlreadyExists"
    await client.patch(CONFIG_MAPS, "a", {"data": {"k": "1"}}, namespace=NS)
    with pytest.raises(Conflict) as stale:
        await client.replace(CONFIG_MAPS, "a", {**created, "data": {}}, namespace=NS)
    assert stale.value.reason == "Conflict"
    with pytest.raises(Invalid):
        await config_map(client, "Not Valid")


async def test_a_list_is_read_page_by_page(client, monkeypatch):
    monkeypatch.setattr("memopod.kube.client._PAGE", 2)
    for name in "abcde":
        await config_map(client, name)
    listed = await client.list(CONFIG_MAPS)
    assert [item["metadata"]["name"] for item in listed["items"]] == list("abcde")
    assert (await client.list(CONFIG_MAPS, name="c"))["items"] == [listed["items"][2]]
    assert (await client.list(CONFIG_MAPS, namespace="argo"))["items"] == []


async def test_a_list_whose_next_page_is_gone_is_read_whole(client, monkeypatch):
    monkeypatch.setattr("memopod.kube.client._PAGE", 1)
    for name in "abc":
        await config_map(client, name)
    read, asked = client._read, []

    async def busy(method, path, **rest):
        answer = await read(method, path, **rest)
        asked.append(rest.get("query"))
        if (rest.get("query") or {}).get("limit") and "continue" not in rest["query"]:
            for number in range(6):
                await read(
                    "PATCH",
                    CONFIG_MAPS.path(NS, "a"),
                    body={"data": {"n": str(number)}},
                    content_type="application/merge-patch+json",
                )
        return answer

    monkeypatch.setattr(client, "_read", busy)
    listed = await client.list(CONFIG_MAPS)
    assert [item["metadata"]["name"] for item in listed["items"]] == list("abc")
    assert "continue" not in listed["metadata"]
    assert "limit" not in asked[-1], "the second page was gone"


@pytest.mark.parametrize("broken", [b'{"a": "\xff"}', b'{"a": 1e999}'], ids=["text", "number"])
async def test_a_list_with_an_object_that_cannot_be_decoded_is_no_usable_answer(client, monkeypatch, broken):
    async def read(method, path, **rest):
        return b'{"metadata": {"resourceVersion": "1"}, "items": [' + broken + b"]}"

    monkeypatch.setattr(client, "_read", read)
    with pytest.raises(Unavailable):
        await client.list(CONFIG_MAPS)


async def test_an_answer_that_does_not_come_in_time_is_unavailable(wired, wire):
    await wired.list(PODS)
    wire.hang()
    with pytest.raises(Unavailable, match=r"no answer in 0\.2 s") as error:
        await wired.get(PODS, "a", namespace=NS, timeout=0.2)
    assert error.value.reason == "Timeout"


async def test_a_server_that_is_not_there_is_unavailable(wired, wire):
    await wire.close()
    with pytest.raises(Unavailable, match=rf"GET /api/v1/pods: .*127\.0\.0\.1:{wire.port}"):
        await wired.list(PODS)
    await wire.open()
    assert (await wired.list(PODS))["items"] == []


async def test_unknown_credentials_are_forbidden(server, tmp_path):
    path = tmp_path / "kubeconfig"
    path.write_text(path.read_text().replace("token: ", "token: x"))
    async with Client.from_kubeconfig(str(path)) as client:
        with pytest.raises(Forbidden) as error:
            await client.list(PODS)
    assert error.value.status == 401


async def test_credentials_that_were_renewed_are_read_again(client, tmp_path):
    await client.list(PODS)
    tokens, kubeconfig = tmp_path / "tokens.json", tmp_path / "kubeconfig"
    known = json.loads(tokens.read_text())
    old = next(token for token, user in known.items() if user["username"] == "sandbox-admin")
    tokens.write_text(json.dumps({"renewed-token": known[old]}))
    kubeconfig.write_text(kubeconfig.read_text().replace(old, "renewed-token"))
    await asyncio.gather(*(client.list(PODS) for _ in range(5)))
    assert client._configuration.api_key["BearerToken"] == "Bearer renewed-token"


async def test_a_kubeconfig_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent: no such file"):
        await Client.from_kubeconfig(str(tmp_path / "absent")).__aenter__()


async def test_outside_a_cluster_and_without_a_kubeconfig_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="cannot configure"):
        await Client.from_kubeconfig().__aenter__()


async def test_the_environment_names_the_kubeconfig(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    async with Client.from_kubeconfig() as client:
        await client.list(PODS)


@pytest.mark.parametrize(("told", "expected"), [("namespace: pipelines", "pipelines"), ("", "default")])
async def test_where_no_namespace_is_named_it_is_the_contexts(server, tmp_path, told, expected):
    path = tmp_path / "kubeconfig"
    path.write_text(path.read_text().replace("namespace: pipelines", told))
    async with Client.from_kubeconfig(str(path)) as client:
        assert client.default_namespace() == expected


async def test_a_client_must_be_entered():
    with pytest.raises(RuntimeError, match="async with"):
        await Client.from_kubeconfig("x").list(PODS)


async def test_a_watch_from_a_version_that_is_not_kept_is_gone(client):
    start = (await client.list(CONFIG_MAPS))["metadata"]["resourceVersion"]
    for name in "abcdef":
        await config_map(client, name)
    with pytest.raises(Gone):
        await anext(client.watch(CONFIG_MAPS, resource_version=start))


async def test_a_watch_that_the_server_does_not_end_is_taken_for_dead(wired, wire, monkeypatch):
    monkeypatch.setattr("memopod.kube.client._WATCH_GRACE", -0.7)
    start = (await wired.list(PODS))["metadata"]["resourceVersion"]
    async with aclosing(wired.watch(PODS, resource_version=start, timeout_seconds=1)) as events:
        assert (await anext(events))["type"] == "BOOKMARK"
        wire.hang()
        with pytest.raises(Unavailable) as error:  # noqa: PT012 - events on the way come first
            while True:
                await anext(events)
    assert error.value.reason == "Timeout"


async def test_a_deadline_of_a_watch_does_not_interrupt_who_handles_its_events(client, monkeypatch):
    monkeypatch.setattr("memopod.kube.client._WATCH_GRACE", -0.9)
    start = (await client.list(PODS))["metadata"]["resourceVersion"]
    async with aclosing(client.watch(PODS, resource_version=start, timeout_seconds=1)) as events:
        await anext(events)
        await asyncio.sleep(0.2)


async def test_events_larger_than_any_buffer_arrive_whole(client):
    start = (await client.list(CONFIG_MAPS))["metadata"]["resourceVersion"]
    async with aclosing(client.watch(CONFIG_MAPS, resource_version=start)) as events:
        await config_map(client, "a", data={"k": "x" * 2_500_000})
        while (event := await anext(events))["type"] == "BOOKMARK":
            pass
    assert len(event["object"]["data"]["k"]) == 2_500_000


async def test_an_exec_plugin_is_asked_for_credentials_and_again_when_they_are_refused(server, tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    config = yaml.safe_load(kubeconfig.read_text())
    token = config["users"][0]["user"]["token"]
    calls = tmp_path / "calls"
    plugin = tmp_path / "plugin"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    first, later = ({**credential, "status": {"token": each}} for each in ("expired", token))
    plugin.write_text(
        f"#!/bin/sh\necho >> {calls}\n"
        f"[ $(wc -l < {calls}) = 1 ] && echo '{json.dumps(first)}' || echo '{json.dumps(later)}'\n"
    )
    plugin.chmod(0o700)
    config["users"][0]["user"] = {
        "exec": {
            "apiVersion": credential["apiVersion"],
            "command": str(plugin),
            "args": [],
            "interactiveMode": "Never",
        }
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    async with Client.from_kubeconfig(str(kubeconfig)) as client:
        await client.list(PODS)
        await client.list(PODS)
    assert calls.read_text() == "\n\n"


async def test_inside_a_cluster_the_service_account_is_used_and_its_token_rotated(
    server, tmp_path, monkeypatch
):
    config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    account = tmp_path / "token"
    account.write_text(config["users"][0]["user"]["token"])
    module = "kubernetes.aio.config.incluster_config"
    monkeypatch.setattr(f"{module}.SERVICE_TOKEN_FILENAME", str(account))
    monkeypatch.setattr(f"{module}.SERVICE_CERT_FILENAME", str(tmp_path / "tls" / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    async with Client.from_kubeconfig() as client:
        await client.list(PODS)
        tokens = tmp_path / "tokens.json"
        user = json.loads(tokens.read_text())[account.read_text()]
        tokens.write_text(json.dumps({"rotated": user}))
        account.write_text("rotated")
        await client.list(PODS)


async def test_an_object_that_is_nested_too_deeply_hides_no_other_of_its_list(client, monkeypatch):
    deep = b'{"a":' * 9_000 + b"1" + b"}" * 9_000
    first, last = b'{"metadata":{"name":"a"}}', b'{"metadata":{"name":"b"}}'
    page = b'{"metadata":{"resourceVersion":"7"},"items":[%s,%s,%s]}' % (first, deep, last)

    async def answer(*_, **__):
        return page

    monkeypatch.setattr(client, "_read", answer)
    listed = await client.list(CONFIG_MAPS)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["a", "b"]
    assert listed["metadata"]["resourceVersion"] == "7"
