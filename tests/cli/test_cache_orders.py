"""`memopod cache` finds, counts, pins, takes back, exports: straight from a database, and by the API."""

import asyncio
import json
import sqlite3
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from typer.testing import CliRunner

from cache_server.entries import Entry, open_entries
from cache_server.entries.counts import Counts
from memopod.cli import app
from memopod.steps import Outputs

NOW = datetime.now(UTC)


def entry(number, **changes):
    at = NOW - timedelta(days=10) + timedelta(seconds=number)
    fields = {
        "id": uuid.uuid4().hex, "namespace": "pipelines", "key": f"{number:064x}", "key_version": 1,
        "components": {"image": f"{number:04x}"}, "template_name": "train", "workflow": f"run-{number}",
        "workflow_uid": "7f", "node_id": "n", "pod_name": f"run-{number}-train-1",
        "pod_uid": uuid.uuid4().hex, "image_id": "x", "execution_id": None,
        "outputs": Outputs(parameters={"loss": f"0.{number} 🎉"}),
        "started_at": at - timedelta(seconds=90), "finished_at": at, "recorded_at": at,
    }  # fmt: skip
    return Entry(**{**fields, **changes})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE", "SERVER", "TOKEN_FILE", "CA_FILE"):
        monkeypatch.delenv(f"MEMOPOD_CACHE_{name}", raising=False)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'cache.db'}"


@pytest.fixture(params=["database", "server"])
async def where(request, url, served):
    """Flags that name the entries: the same ones by either way."""
    async with open_entries(url):
        pass
    if request.param == "database":
        yield ["--database", url]
        return
    async with served(url) as flags:
        yield flags


@pytest.fixture
def memopod():
    def run(*arguments, **options):
        return CliRunner().invoke(app, ["cache", *arguments], **options)

    before = structlog.get_config()
    yield lambda *arguments, **options: asyncio.to_thread(run, *arguments, **options)
    structlog.configure(**before)


@pytest.fixture
def fill(url):
    async def fill(*kept):
        async with open_entries(url) as entries:
            await entries.put_all(kept)

    return fill


@pytest.fixture
def standing(url):
    async def standing():
        async with open_entries(url) as entries:
            return {entry.id: entry for entry in await entries.list(limit=1000)}

    return standing


async def test_entries_are_listed_found_and_shown(memopod, fill, where):
    one, other = entry(1), entry(2, template_name="other", namespace="b")
    await fill(one, other)
    listed = await memopod("list", *where)
    assert listed.exit_code == 0, listed.output
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [other.id[:8], one.id[:8]]
    found = await memopod("find", "template=train", "parameter.loss=0.1 🎉", *where, "--json")
    assert [e["id"] for e in json.loads(found.stdout)] == [one.id]
    assert (await memopod("find", "component.image=0002", "-n", "a", *where)).stdout == "no entries match\n"
    shown = await memopod("show", other.id[:10], *where)
    assert "0.2 🎉" in shown.stdout
    wrong = await memopod("find", "size=3", *where)
    assert (wrong.exit_code, "where FIELD is" in wrong.stderr) == (1, True)
    absent = await memopod("show", "ff" * 16, *where)
    assert (absent.exit_code, absent.stderr.count("\n")) == (1, 1)


async def test_statistics_are_a_table_with_a_sum(memopod, fill, where, url):
    kept = entry(1)
    await fill(kept)
    async with open_entries(url) as entries:
        counts = Counts(entries.database)
        for reason in ("hit", "miss", "stale", "miss"):
            counts.add(
                namespace="pipelines", template="train", reason=reason, entry_id=kept.id * (reason == "hit")
            )
        counts.add(namespace="other", template="x", reason="volume")
        await counts.write()
    told = await memopod("stats", *where)
    assert told.exit_code == 0, told.output
    heading, train, x, *_, total = told.stdout.splitlines()
    assert heading.split()[:4] == ["NAMESPACE", "TEMPLATE", "ENTRIES", "HITS"]
    assert train.split() == [
        "pipelines",
        "train",
        "1",
        "1",
        "3",
        "25%",
        "1",
        "m",
        "30",
        "s",
        "miss",
        "2,",
        "stale",
        "1",
    ]
    assert x.split()[:5] == ["other", "x", "0", "0", "1"]
    assert total.split()[:5] == ["all", "1", "1", "4", "20%"]
    assert "1 m 30 s saved in 30 days" in told.stderr
    [only] = json.loads((await memopod("stats", "-n", "other", *where, "--json")).stdout)
    assert only["missed"] == {"volume": 1}


async def test_one_entry_is_taken_back_by_its_id(memopod, fill, where, standing):
    one, other = entry(1), entry(2)
    await fill(one, other)
    dry = await memopod("invalidate", one.id[:8], "--dry-run", *where)
    assert dry.stdout == "1 entry would be taken\n"
    begun = time.monotonic()
    done = await memopod("invalidate", one.id[:8], "--reason", "wrong data", *where)
    assert (done.exit_code, done.stdout) == (0, "1 entry taken out of reuse\n")
    assert time.monotonic() - begun >= 1
    assert set(await standing()) == {other.id}
    mistake = await memopod("invalidate", other.id[:8], "ff" * 16, *where)
    assert mistake.exit_code == 1
    assert set(await standing()) == {other.id}


async def test_many_are_taken_back_only_with_a_yes(memopod, fill, where, standing):
    here, there = [entry(n) for n in range(3)], entry(9, namespace="other")
    await fill(*here, there)
    refused = await memopod("invalidate", "--namespace", "pipelines", *where)
    assert refused.exit_code == 2
    assert len(await standing()) == 4
    for nothing in ([], ["--all", "-n", "x"], [here[0].id, "--all"]):
        assert (await memopod("invalidate", *nothing, *where)).exit_code == 2
    done = await memopod(
        "invalidate", "-n", "pipelines", "--where", "template=train", "--yes", "--json", *where
    )
    assert json.loads(done.stdout) == {"invalidated": 3, "dry_run": False}
    assert set(await standing()) == {there.id}


async def test_a_pinned_entry_outlives_the_collection(memopod, fill, where, standing):
    kept, gone = entry(1), entry(2)
    await fill(kept, gone)
    pinned = await memopod("pin", kept.id[:8], *where)
    assert pinned.stdout == f"{kept.id[:8]} is pinned\n"
    dry = await memopod("gc", "--max-idle", "P1D", "--dry-run", *where)
    assert dry.stdout == "1 entry would be deleted (1 by idle)\n"
    done = await memopod("gc", "--max-age", "P1D", "--json", *where)
    assert json.loads(done.stdout)["deleted"] == {"age": 1, "idle": 0, "number": 0}
    assert (await standing())[kept.id].pinned
    assert "is no longer pinned" in (await memopod("pin", kept.id[:8], "--off", *where)).stdout
    assert (await memopod("gc", *where)).exit_code == 2
    soon = await memopod("gc", "--max-age", "soon", *where)
    assert (soon.exit_code, "ISO 8601" in soon.stderr) == (1, True)


async def test_an_export_is_every_entry_a_line_each(memopod, fill, where, tmp_path):
    kept = [entry(n) for n in range(7)]
    await fill(*kept)
    lines = (await memopod("export", *where)).stdout.splitlines()
    assert {json.loads(line)["id"] for line in lines} == {e.id for e in kept}
    array = json.loads((await memopod("export", "--json", "--where", "workflow=run-3", *where)).stdout)
    assert [e["id"] for e in array] == [kept[3].id]
    target = tmp_path / "out.jsonl"
    done = await memopod("export", "--output", str(target), *where)
    assert (done.exit_code, done.stdout) == (0, "")
    assert len(target.read_text().splitlines()) == 7
    failed = await memopod("export", "--output", str(tmp_path / "absent" / "x"), *where)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


async def test_a_server_is_asked_only_with_a_token_and_over_tls(
    memopod, fill, url, served, tmp_path, monkeypatch
):
    kept = entry(1)
    await fill(kept)
    async with served(url) as flags:
        place = flags[1]
        (tmp_path / "wrong").write_text("another-token-than-that")
        (tmp_path / "empty").write_text("\n")
        for given, status, told in (
            (["--server", place, "--ca-file", flags[5]], 2, "--token-file"),
            (["--server", place.replace("https", "http"), *flags[2:]], 2, "expected https"),
            ([*flags, "--database", url], 2, "not two of them"),
            ([*flags[:2], "--token-file", str(tmp_path / "wrong"), *flags[4:]], 1, "token is not known"),
            ([*flags[:2], "--token-file", str(tmp_path / "empty"), *flags[4:]], 1, "expected a token"),
            ([*flags[:2], "--token-file", str(tmp_path / "absent"), *flags[4:]], 1, "No such file"),
            (flags[:4], 1, "certificate verify failed"),
            (["--server", "https://127.0.0.1:1", *flags[2:]], 1, "cannot reach https://127.0.0.1:1"),
        ):
            result = await memopod("list", *given)
            assert result.exit_code == status, (given, result.output)
            assert told in result.output.replace("\n", " ").replace("│", " ")
            assert "the_token_of_this_test" not in result.output
            assert kept.id[:8] not in result.stdout
        for name, value in zip(("SERVER", "TOKEN_FILE", "CA_FILE"), (place, flags[3], flags[5]), strict=True):
            monkeypatch.setenv(f"MEMOPOD_CACHE_{name}", value)
        assert kept.id[:8] in (await memopod("list")).stdout
        # A flag for a database wins over the environment's server.
        assert "no database at" in (await memopod("list", "--state", str(tmp_path / "no"))).stderr


async def test_a_database_of_another_schema_is_not_changed_by_an_order(memopod, fill, url, tmp_path):
    kept = entry(1)
    await fill(kept)
    with closing(sqlite3.connect(tmp_path / "cache.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    refused = await memopod("invalidate", kept.id, "--database", url)
    assert refused.exit_code == 1
    assert "has schema version 0001" in refused.stderr
    with closing(sqlite3.connect(tmp_path / "cache.db")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
