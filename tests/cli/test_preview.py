import asyncio
import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cache_server.entries import open_entries
from memopod.cli import app as memopod
from memopod.cli.preview import preview

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
    command = typer.Typer()
    command.command()(preview)
    return CliRunner().invoke(command, [*arguments, "--database", url])


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
