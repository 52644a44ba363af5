import asyncio
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cache_server.entries import Entry, open_entries
from memopod.cli import app as memopod
from memopod.cli.preview import preview
from memopod.steps import Outputs, read_step
from memopod.steps.key import KEY_VERSION, base_components, component_digest

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLES / "argo-4.1.2" / "parameters.workflow.json", "workflow.yaml")
    url = f"sqlite:///{tmp_path / 'cache.db'}"

    async def make():
        async with open_entries(url):
            pass

    asyncio.run(make())
    return url


def ask(url, *arguments):
    return ask_at(["--database", url], *arguments)


def ask_at(where, *arguments):
    command = typer.Typer()
    command.command()(preview)
    return CliRunner().invoke(command, [*arguments, *where])


def recorded(url):
    """An entry of the first step of the workflow."""
    step = read_step(json.loads((SAMPLES / "argo-4.1.2" / "parameters.make.pod.json").read_text()))
    known = {name: component_digest(value) for name, value in base_components(step).items()}
    at = datetime(2026, 11, 24, tzinfo=UTC)
    entry = Entry(
        id="a" * 32, namespace="pipelines", key="b" * 64, key_version=KEY_VERSION, components=known,
        template_name=step.template_name, workflow=step.workflow, workflow_uid=step.workflow_uid,
        node_id=step.node_id, pod_name=step.pod_name, pod_uid=step.pod_uid, image_id="i", execution_id=None,
        outputs=Outputs(parameters={"Output": "hello"}), started_at=at, finished_at=at, recorded_at=at,
    )  # fmt: skip

    async def put():
        async with open_entries(url) as entries:
            assert await entries.put(entry)

    asyncio.run(put())


async def test_a_servers_api_previews_as_its_database_does(url, served):
    await asyncio.to_thread(recorded, url)
    asked = ("workflow.yaml", "-n", "pipelines", "--json")
    async with served(url) as flags:
        by_server = await asyncio.to_thread(ask_at, flags, *asked)
    by_database = await asyncio.to_thread(ask, url, *asked)
    assert by_server.exit_code == 0, by_server.output
    assert by_server.stdout == by_database.stdout
    assert json.loads(by_server.stdout)[0]["verdict"] == "reuse"


def test_a_manifest_is_previewed_as_a_table_and_as_json(url):
    shown = ask(url, "workflow.yaml")
    assert shown.exit_code == 0, shown.output
    assert "no entry of this template stands" in shown.stdout
    assert "1 run, 1 unknown" in shown.stdout
    document = json.loads(ask(url, "workflow.yaml", "--json").stdout)
    assert [step["verdict"] for step in document] == ["run", "unknown"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "YAML or JSON"),
        ("kind: Workflow", "spec.entrypoint"),
        ("kind: Workflow\nspec: {entrypoint: a, templates: 5}", "another shape"),
        ("kind: Workflow\nspec: {entrypoint: a, arguments: [1]}", "another shape"),
        ("kind: Other", "bad.yaml"),
    ],
)
def test_a_file_that_is_neither_is_refused_in_a_line(url, tmp_path, content, words):
    (tmp_path / "bad.yaml").write_text(content)
    result = ask(url, "bad.yaml")
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_is_missing_is_said(url):
    assert ask(url, "absent.yaml").exit_code == 1
    assert "no parameter 'x'" in ask(url, "workflow.yaml", "-p", "x=1").stderr


def test_its_limits_are_in_its_help():
    result = CliRunner().invoke(memopod, ["preview", "--help"])
    assert result.exit_code == 0
    for word in ("podSpecPatch", "ConfigMaps", "withParam", "when"):
        assert word in result.stdout
