import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import typer
from typer.testing import CliRunner

from cache_server.entries import Entry, open_entries
from memopod.cli import app as memopod
from memopod.cli.why import why
from memopod.sandbox.apiserver.app import Server
from memopod.sandbox.apiserver.settings import Settings
from memopod.steps import Outputs
from memopod.steps.key import KEY_VERSION

START = datetime(2026, 1, 2, tzinfo=UTC)

COMPONENTS = {"run.0.main.image": "1", "template.container": "1", "salt": "0"}


def entry(number, **changes):
    finished = START + timedelta(seconds=number)
    fields = {
        "id": uuid.uuid4().hex, "namespace": "pipelines", "key": f"{number:064x}",
        "key_version": KEY_VERSION, "components": COMPONENTS, "template_name": "train",
        "workflow": f"run-{number}", "workflow_uid": "7f1c", "node_id": f"run-{number}-1",
        "pod_name": f"run-{number}-train-1", "pod_uid": uuid.uuid4().hex,
        "image_id": "python@sha256:12", "outputs": Outputs(parameters={}), "execution_id": None,
        "started_at": finished, "finished_at": finished, "recorded_at": finished,
    }  # fmt: skip
    return Entry(**{**fields, **changes})


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return f"sqlite:///{tmp_path / 'cache.db'}"


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(why)
    return app


def kept(url, *entries):
    async def put():
        async with open_entries(url) as opened:
            for one in entries:
                assert await opened.put(one)

    asyncio.run(put())


def ask(command, url, *arguments):
    return CliRunner().invoke(command, [*arguments, "--database", url])


def test_a_key_is_explained_without_a_cluster(command, url):
    first = entry(1, components=COMPONENTS)
    moved = {**COMPONENTS, "run.0.main.image": "2", "template.container": "2"}
    second = entry(2, components=moved, finished_at=START + timedelta(hours=1))
    kept(url, first, second)
    result = ask(command, url, second.key)
    assert result.exit_code == 0, result.output
    assert "image of main changed" in result.output
    assert first.image_id not in result.output, "an image says nothing without the later one"
    assert f"memopod cache show {first.id[:8]}" in result.stderr
    document = json.loads(ask(command, url, second.key, "--json").stdout)
    assert document["nearest"]["entry"] == first.id
    assert [d["subject"] for d in document["differences"]] == ["image of main"]


def test_the_first_run_of_a_template_has_nothing_to_be_compared_with(command, url):
    only = entry(1, components=COMPONENTS)
    kept(url, only)
    assert json.loads(ask(command, url, only.key, "--json").stdout)["nearest"] is None


def test_a_key_that_several_namespaces_have_is_explained_in_the_one_that_is_named(command, url):
    here = entry(1)
    there = entry(2, key=here.key, namespace="other")
    kept(url, here, there)
    asked = {n: ask(command, url, here.key, "--json", "-n", n) for n in ("pipelines", "other", "nowhere")}
    assert json.loads(asked["pipelines"].stdout)["entry"] == here.id
    assert json.loads(asked["other"].stdout)["entry"] == there.id
    assert "no entry has this key in namespace nowhere" in asked["nowhere"].stderr


def test_what_is_missing_is_said_with_what_to_do(command, url):
    kept(url, entry(1))
    unknown = ask(command, url, "f" * 64)
    assert (unknown.exit_code, unknown.stderr) == (
        1,
        "error: no entry has this key; of a step that left none, ask by its Pod's name\n",
    )
    no_cluster = ask(command, url, "some-pod")
    assert no_cluster.exit_code == 1
    assert "--kubeconfig" in no_cluster.stderr
    no_database = ask(command, "sqlite:////nowhere/cache.db", "f" * 64)
    assert no_database.exit_code == 1
    assert "Traceback" not in no_database.output


def test_it_is_a_command_of_memopod():
    result = CliRunner().invoke(memopod, ["why", "--help"])
    assert result.exit_code == 0
    assert "POD|KEY" in result.stdout


@pytest.mark.parametrize(("arguments", "found"), [((), True), (("-n", "default"), False)])
async def test_a_pod_is_looked_for_in_the_namespace_of_the_kubeconfigs_context(
    command, url, tmp_path, arguments, found
):
    one = entry(1)
    await asyncio.to_thread(kept, url, one)
    server = await Server.start(Settings(state=str(tmp_path / "cluster")))
    try:
        flags = ("--kubeconfig", str(tmp_path / "cluster" / "kubeconfig"), "--json", *arguments)
        result = await asyncio.to_thread(ask, command, url, one.pod_name, *flags)
    finally:
        await server.stop()
    if found:
        assert json.loads(result.stdout)["namespace"] == "pipelines"
    else:
        assert "in namespace default" in result.stderr


async def test_a_servers_api_explains_as_its_database_does(command, url, served, tmp_path):
    moved = {**COMPONENTS, "run.0.main.image": "2", "template.container": "2"}
    first = entry(1)
    second = entry(2, components=moved, finished_at=START + timedelta(hours=1))
    # As many later runs as more than one page of the API holds.
    later = [entry(n, finished_at=START + timedelta(hours=2, seconds=n)) for n in range(3, 353)]
    await asyncio.to_thread(kept, url, first, second, *later)
    (tmp_path / "other").write_text("the_token_of_nobody")
    async with served(url) as flags:
        for asked in ([second.key], [second.key, "-n", "pipelines"], [later[-1].key]):
            by_server = await asyncio.to_thread(CliRunner().invoke, command, [*asked, "--json", *flags])
            assert by_server.exit_code == 0, by_server.output
            by_database = await asyncio.to_thread(ask, command, url, *asked, "--json")
            assert json.loads(by_server.stdout) == json.loads(by_database.stdout)
        shown = await asyncio.to_thread(CliRunner().invoke, command, [second.key, *flags])
        assert f"memopod cache show {first.id[:8]} --server https://" in shown.stderr
        stranger = [*flags, "--token-file", str(tmp_path / "other")]
        refused = await asyncio.to_thread(CliRunner().invoke, command, [second.key, *stranger])
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
    assert "the token is not known" in refused.stderr
    gone = await asyncio.to_thread(CliRunner().invoke, command, [second.key, *flags])
    assert (gone.exit_code, "cannot reach" in gone.stderr) == (1, True)
