import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from cache_server.entries import Entry, open_entries
from memopod.cli.cache import app
from memopod.steps import Location, OutputArtifact, Outputs

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(number, **changes):
    fields = {
        "id": uuid.uuid4().hex,
        "namespace": "pipelines",
        "key": f"{number:064x}",
        "key_version": 1,
        "components": {"image": "12ab"},
        "template_name": "train",
        "workflow": f"run-{number}",
        "workflow_uid": "7f1c",
        "node_id": f"run-{number}-1",
        "pod_name": f"run-{number}-train-1",
        "pod_uid": uuid.uuid4().hex,
        "image_id": "python@sha256:12",
        "outputs": Outputs(
            parameters={"message": "[bold]héllo"},
            artifacts=(
                OutputArtifact(
                    name="model",
                    location=Location("s3", "minio:9000", "pipelines", "run-1/model"),
                    reported={},
                    size=7,
                ),
            ),
        ),
        "execution_id": None,
        "started_at": START,
        "finished_at": START + timedelta(seconds=90 + number),
        "recorded_at": START + timedelta(seconds=100),
    }
    return Entry(**{**fields, **changes})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMOPOD_CACHE_DATABASE", raising=False)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'cache.db'}"


@pytest.fixture
def fill(url):
    async def fill(*kept):
        async with open_entries(url) as entries:
            for one in kept:
                await entries.put(one)

    return fill


@pytest.fixture
def memopod():
    """Runs in a thread of its own: the command has an event loop, and so has the test."""

    def run(*arguments):
        return CliRunner().invoke(app, arguments)

    return lambda *arguments: asyncio.to_thread(run, *arguments)


async def test_a_listing_shows_the_newest_first_and_what_was_saved(memopod, fill, url):
    first, second = entry(1), entry(2, max_staleness_seconds=90000)
    await fill(first, second)
    async with open_entries(url) as entries:
        await entries.used(first.id, START)
        await entries.used(first.id, START)
    result = await memopod("list", "--database", url)
    assert result.exit_code == 0, result.output
    heading, newest, oldest = result.stdout.splitlines()
    assert heading.split()[:3] == ["ID", "NAMESPACE", "TEMPLATE"]
    assert newest.startswith(second.id[:8])
    assert newest.split()[-7:] == ["0", "0", "s", "1", "d", "1", "h"]
    assert "run-1-train-1" in oldest
    assert "3 m 2 s" in oldest
    assert f"next: memopod cache show {second.id[:8]} --database" in result.stderr


async def test_a_listing_is_filtered_and_limited(memopod, fill, url):
    await fill(entry(1, namespace="a"), entry(2, template_name="other"), entry(3))
    for options, workflows in (
        (["--namespace", "a"], ["run-1"]),
        (["--template", "other"], ["run-2"]),
        (["--limit", "2"], ["run-3", "run-2"]),
    ):
        result = await memopod("list", "--database", url, "--json", *options)
        assert [one["workflow"] for one in json.loads(result.stdout)] == workflows


async def test_an_empty_listing_says_what_to_do(memopod, fill, url):
    await fill()
    result = await memopod("list", "--database", url)
    assert (result.exit_code, result.stdout) == (0, "no entries yet\n")
    assert result.stderr == "next: memopod run PIPELINE.yaml\n"
    assert (await memopod("list", "--database", url, "-n", "x")).stdout == "no entries match\n"
    assert (await memopod("list", "--database", url, "--json")).stdout == "[]\n"


async def test_an_entry_is_shown_with_its_outputs_and_components(memopod, fill, url):
    kept = entry(1)
    await fill(kept)
    result = await memopod("show", kept.id[:6].upper(), "--database", url)
    assert result.exit_code == 0, result.output
    for text in (kept.id, kept.key, "[bold]héllo", "minio://pipelines/run-1/model (7 bytes)", "12ab"):
        assert text in result.stdout
    assert "next: memopod lineage show run-1" in result.stderr


async def test_an_entry_as_json_has_every_field(memopod, fill, url):
    kept = entry(1)
    await fill(kept)
    document = json.loads((await memopod("show", kept.id, "--json", "--database", url)).stdout)
    [artifact] = document["outputs"]["artifacts"]
    assert artifact.pop("uri") == "minio://pipelines/run-1/model"
    assert document["outputs"] == kept.outputs.to_json()
    assert document["finished_at"] == "2026-01-02T03:05:36Z"
    assert document["components"] == {"image": "12ab"}
    assert (document["uses"], document["last_used_at"], document["seconds_saved"]) == (0, None, 0)


async def test_an_id_that_nothing_or_too_much_begins_with_is_an_error(memopod, fill, url):
    await fill(entry(1, id="ab" * 16), entry(2, id="ac" * 16))
    unknown = await memopod("show", "ff", "--database", url)
    assert unknown.exit_code == 1
    assert "no entry's id begins with 'ff'" in unknown.stderr
    ambiguous = await memopod("show", "a", "--database", url)
    assert ambiguous.exit_code == 1
    assert "acacacac, abababab" in ambiguous.stderr
    assert (await memopod("show", "model.tgz", "--database", url)).exit_code == 2


async def test_the_database_is_found_by_state_folder_environment_or_default(
    memopod, fill, url, tmp_path, monkeypatch
):
    await fill(entry(1))
    by_state = await memopod("list", "--state", str(tmp_path))
    assert "run-1" in by_state.stdout
    assert f"--state {tmp_path}" in by_state.stderr
    (tmp_path / ".memopod").mkdir()
    (tmp_path / ".memopod/sandbox").symlink_to(tmp_path)
    assert "run-1" in (await memopod("list")).stdout
    monkeypatch.setenv("MEMOPOD_CACHE_DATABASE", f"sqlite:///{tmp_path}/other.db")
    assert "no database at" in (await memopod("list")).stderr
    assert (await memopod("list", "--state", "x", "--database", url)).exit_code == 2


async def test_what_cannot_be_read_is_one_line_of_error(memopod, tmp_path):
    (tmp_path / "text.db").write_text("no database at all, but long enough for a header of one")
    (tmp_path / "empty.db").write_bytes(b"")
    for name, told in (
        ("absent.db", "no database at"),
        ("text.db", "file is not a database"),
        ("empty.db", "holds no entries' schema"),
    ):
        result = await memopod("list", "--database", f"sqlite:///{tmp_path / name}")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert told in result.stderr
        assert result.stderr.count("\n") == 1
    unsupported = await memopod("list", "--database", "oracle://root:hunter2@db/cache")
    assert unsupported.exit_code == 1
    assert "hunter2" not in unsupported.output


async def test_a_database_is_migrated_by_command_and_may_be_again(memopod, tmp_path):
    given = "--database", f"sqlite:///{tmp_path / 'new.db'}"
    for _ in range(2):
        migrated = await memopod("migrate", *given)
        assert migrated.exit_code == 0
        assert migrated.stdout == f"{tmp_path / 'new.db'} has this version's schema\n"
    assert "no entries yet" in (await memopod("list", *given)).stdout


async def test_a_database_of_a_server_is_migrated_and_its_password_is_not_shown(
    memopod, mariadb, monkeypatch
):
    url = f"mysql://{mariadb.user}:{quote(mariadb.password, safe='')}@127.0.0.1:{mariadb.port}"
    by_flag = await memopod("migrate", "--database", f"{url}/mysql")
    monkeypatch.setenv("MEMOPOD_CACHE_DATABASE", f"{url}/mysql")
    by_environment = await memopod("migrate")
    monkeypatch.setenv("MEMOPOD_CACHE_DATABASE", f"{url}/absent")
    refused = await memopod("migrate")
    assert (by_flag.exit_code, by_environment.exit_code, refused.exit_code) == (0, 0, 1)
    assert "Unknown database 'absent'" in refused.stderr
    for result in (by_flag, by_environment, refused):
        assert f"mysql://{mariadb.user}@127.0.0.1:{mariadb.port}/" in result.output
        assert "hunter2" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *(
            [name, "--help"]
            for name in (
                "list",
                "show",
                "find",
                "stats",
                "invalidate",
                "pin",
                "export",
                "gc",
                "import",
                "migrate",
            )
        ),
    ],
)
async def test_help_has_examples(memopod, arguments):
    result = await memopod(*arguments)
    assert result.exit_code == 0
    assert "memopod cache" in result.output
    assert "Example" in result.output
