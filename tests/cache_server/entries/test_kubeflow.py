"""Kubeflow's table, as its server makes it, imported from MariaDB."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import quote

import msgspec
import pytest

from cache_server.admission import Policy
from cache_server.entries import find_imported, open_entries
from cache_server.entries.imported import imported_key
from cache_server.entries.importing import import_rows
from cache_server.entries.kubeflow import (
    DISABLED,
    NO_CONTAINER,
    NO_OUTPUTS,
    OLDER,
    OTHER_KEY,
    UNREADABLE,
    NotImportable,
    open_source,
    read_row,
)
from cache_server.placeholder import PlaceholderRules, placeholders
from cache_server.review import AdmissionRequest, PodText, Resource, User
from memopod.steps import names
from memopod.steps.argo import template_text
from memopod.steps.kubeflow import fingerprint

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ALL_SCRIPTS = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def template(name="train", image="python:3.11", **outputs):
    return {
        "name": name,
        "container": {"image": image, "command": ["echo", "Hello 🎉"]},
        "outputs": outputs or {"parameters": [{"name": "loss", "valueFrom": {"path": "/tmp/l"}}]},
        "archiveLocation": {"s3": {"endpoint": "minio:9000", "bucket": "mlpipeline", "key": "x"}},
    }


def row(number, made=None, *, outputs=None, **changes):
    made = json.dumps(template() if made is None else made, ensure_ascii=False)
    outputs = {"parameters": [{"name": "loss", "value": "0.1 🎉"}]} if outputs is None else outputs
    envelope = {
        "workflows.argoproj.io/outputs": json.dumps(outputs, ensure_ascii=False),
        "pipelines.kubeflow.org/metadata_execution_id": "17",
    }
    fields = {
        "ID": number, "ExecutionCacheKey": fingerprint(made), "ExecutionTemplate": made,
        "ExecutionOutput": json.dumps(envelope, ensure_ascii=False), "MaxCacheStaleness": -1,
        "StartedAtInSec": 1_700_000_000 + number, "EndedAtInSec": 1_700_000_000 + number,
    }  # fmt: skip
    return {**fields, **changes}


def read(given):
    return read_row(given, namespace="pipelines", source="db:3306/cachedb", now=NOW)


def test_a_row_becomes_an_entry_with_what_its_template_declares():
    made = template(
        parameters=[{"name": "loss"}],
        artifacts=[{"name": "model", "path": "/tmp/m"}],
    )
    outputs = {
        "parameters": [{"name": "loss", "value": "0.1"}, {"name": "undeclared", "value": "x"}],
        "artifacts": [
            {"name": "model", "s3": {"key": "run-1/model.tgz"}},
            {"name": "main-logs", "s3": {"key": "run-1/main.log"}},
        ],
        "exitCode": "0",
    }
    entry = read(row(5, made, outputs=outputs, MaxCacheStaleness=3600))
    assert entry.key == imported_key(fingerprint(json.dumps(made)))
    assert (entry.template_name, entry.key_version, entry.execution_id) == ("train", 0, 17)
    assert dict(entry.outputs.parameters) == {"loss": "0.1"}
    [artifact] = entry.outputs.artifacts
    assert artifact.location.uri == "minio://mlpipeline/run-1/model.tgz"
    assert entry.finished_at == datetime.fromtimestamp(1_700_000_005, UTC)
    assert entry.max_staleness_seconds == 3600
    assert read(row(5)).max_staleness_seconds is None


def test_a_row_keeps_what_its_template_tells_beyond_the_fingerprint():
    plain, other = template(), template()
    other["container"]["workingDir"] = "/other"
    assert fingerprint(json.dumps(plain)) == fingerprint(json.dumps(other))
    differ = dict(read(row(1, plain)).components).items() ^ dict(read(row(1, other)).components).items()
    assert {name for name, _ in differ} == {"template.container"}


def test_the_same_row_is_the_same_entry_and_another_is_another():
    assert read(row(1)) == read(row(1))
    assert len({read(row(n)).id for n in range(3)} | {read(row(n)).pod_uid for n in range(3)}) == 6


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (row(1, {"script": {"source": "print(1)"}}), NO_CONTAINER),
        (row(1, {"resource": {"action": "create"}}), NO_CONTAINER),
        (row(1, {"container": {"image": "x"}}, ExecutionCacheKey="ab" * 32), OTHER_KEY),
        (row(1, ExecutionCacheKey=ALL_SCRIPTS), OTHER_KEY),
        (row(1, ExecutionTemplate="not JSON"), UNREADABLE),
        (row(1, ExecutionTemplate='{"container": "x"}'), NO_CONTAINER),
        (row(1, MaxCacheStaleness=0), DISABLED),
        (row(1, ExecutionOutput="testOutput"), UNREADABLE),
        (row(1, ExecutionOutput="[]"), UNREADABLE),
        (row(1, ExecutionOutput='{"workflows.argoproj.io/outputs": "no JSON"}'), UNREADABLE),
        (row(1, StartedAtInSec=10**15), UNREADABLE),
        (row(1, ExecutionOutput='{"workflows.argoproj.io/outputs": ""}'), NO_OUTPUTS),
        (row(1, outputs={"parameters": []}), NO_OUTPUTS),
    ],
)
def test_a_row_that_could_stand_for_another_step_is_left_out(given, reason):
    with pytest.raises(NotImportable) as raised:
        read(given)
    assert str(raised.value) == reason


def create(database, width=191):
    """As gorm makes it: `width` is 191 since 2.15, 255 before; the server's charset."""
    database.query(
        "CREATE TABLE execution_caches (ID bigint AUTO_INCREMENT, "
        f"ExecutionCacheKey varchar({width}) NOT NULL, "
        "ExecutionTemplate longtext NOT NULL, ExecutionOutput longtext NOT NULL, "
        "MaxCacheStaleness bigint NOT NULL, StartedAtInSec bigint NOT NULL, EndedAtInSec bigint NOT NULL, "
        "PRIMARY KEY (ID), INDEX idx_cache_key (ExecutionCacheKey), "
        "INDEX composite_id_idx (ID, StartedAtInSec)) CHARACTER SET utf8mb4"
    )


async def insert(database, *rows):
    connection = await database.connect()
    async with connection.cursor() as cursor:
        columns = list(rows[0])
        places = ", ".join(["%s"] * len(columns))
        statement = f"INSERT INTO execution_caches ({', '.join(columns)}) VALUES ({places})"
        await cursor.executemany(statement, [tuple(each.values()) for each in rows])
    await connection.ensure_closed()


def store(database, *rows):
    asyncio.run(insert(database, *rows))


async def importing(source_url, entries, namespace="pipelines"):
    async with open_source(source_url) as source:
        async for progress in import_rows(source, entries.database, namespace=namespace, now=NOW):
            last = progress
    return last


def run_import(source_url, url, namespace="pipelines"):
    async def work():
        async with open_entries(url, call_timeout=60) as entries:
            return await importing(source_url, entries, namespace)

    return asyncio.run(work())


@pytest.fixture
def kubeflow_of(mysql_database):
    """A database of Kubeflow's with its empty table, whose key is so many characters wide."""

    def make(width):
        create(mysql_database, width)
        return mysql_database

    return make


@pytest.fixture
def kubeflow(kubeflow_of):
    return kubeflow_of(191)


@pytest.mark.parametrize(("width", "kind"), [(191, "sqlite"), (255, "postgresql")])
def test_every_row_is_found_by_its_fingerprint_in_the_chosen_namespace(mysql_database, request, width, kind):
    database = request.getfixturevalue(f"{kind}_database")
    create(mysql_database, width)
    rows = [row(n, template(image=f"python:{n}")) for n in range(1, 451)]
    store(mysql_database, *rows)
    done = run_import(mysql_database.url, database.url)
    assert (done.total, done.looked_at, done.imported, done.left_out) == (450, 450, 450, {})

    async def look():
        async with open_entries(database.url) as entries:
            for each in rows[::50]:
                found = await find_imported(entries, "pipelines", each["ExecutionCacheKey"])
                assert found.outputs.parameters == {"loss": "0.1 🎉"}
                assert await find_imported(entries, "other", each["ExecutionCacheKey"]) is None
                # memopod's own keys never meet it.
                assert await entries.find("pipelines", each["ExecutionCacheKey"]) is None

    asyncio.run(look())


def test_from_mariadb_into_the_same_mariadb(kubeflow):
    store(kubeflow, row(1), row(2, template(image="other")))
    assert run_import(kubeflow.url, kubeflow.url).imported == 2
    assert run_import(kubeflow.url, kubeflow.url, "another").imported == 2
    assert kubeflow.query("SELECT count(*) FROM entries") == [(4,)]


def test_of_several_rows_of_a_key_the_one_stands_that_kubeflow_would_reuse(kubeflow, sqlite_database):
    at = 1_700_000_000
    started = [3, 9, 9, 5] + [1] * 300 + [9, 2]
    rows = [row(n, StartedAtInSec=at + start, outputs={"parameters": [{"name": "loss", "value": f"{n}"}]})
            for n, start in enumerate(started, 1)]  # fmt: skip
    store(kubeflow, *rows)
    done = run_import(kubeflow.url, sqlite_database.url)
    assert done.imported + done.left_out[OLDER] == len(rows)
    # Started last, and of those the highest ID.
    [(outputs,)] = sqlite_database.query("SELECT outputs FROM entries")
    assert json.loads(outputs)["parameters"] == {"loss": "305"}


def test_a_second_import_takes_only_what_is_new(kubeflow, sqlite_database):
    store(kubeflow, *(row(n, template(image=f"i{n}")) for n in range(1, 6)))
    assert run_import(kubeflow.url, sqlite_database.url).imported == 5
    again = run_import(kubeflow.url, sqlite_database.url)
    assert (again.total, again.imported, again.resumed) == (0, 0, False)
    sqlite_database.query("DELETE FROM entries")
    store(kubeflow, row(6, template(image="i1"), outputs={"parameters": [{"name": "loss", "value": "new"}]}))
    assert run_import(kubeflow.url, sqlite_database.url).imported == 1
    assert sqlite_database.query("SELECT count(*) FROM entries") == [(1,)]


def test_an_import_that_is_killed_goes_on_and_does_nothing_twice(kubeflow, sqlite_database):
    rows = [row(n, template(image=f"i{n % 700}")) for n in range(1, 2101)]
    store(kubeflow, *rows)
    kills = 0
    for _ in range(20):
        status = asyncio.run(one_call_killed_halfway(kubeflow.url, sqlite_database.url))
        kills += status == -signal.SIGKILL
        if status == 0:
            break
    assert kills >= 2
    final = run_import(kubeflow.url, sqlite_database.url)
    assert (final.total, final.imported) == (0, 0)
    stored = sqlite_database.query("SELECT entry_key, finished_at FROM entries")
    newest = {}
    for each in rows:
        newest[imported_key(each["ExecutionCacheKey"])] = each["StartedAtInSec"] * 1_000_000
    assert sorted(stored) == sorted(newest.items())


CALL = """
import asyncio, sys
from datetime import UTC, datetime
from cache_server.entries import open_entries
from cache_server.entries.importing import import_rows
from cache_server.entries.kubeflow import open_source

async def work():
    async with open_source(sys.argv[1]) as source, open_entries(sys.argv[2], call_timeout=60) as entries:
        async for far in import_rows(source, entries.database, namespace="pipelines", now=datetime.now(UTC)):
            print(far.looked_at, flush=True)

asyncio.run(work())
"""


async def one_call_killed_halfway(source_url, url):
    """Kill an import when it has told of three batches; its exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALL, source_url, url, stdout=asyncio.subprocess.PIPE
    )
    told = 0
    while await asyncio.wait_for(process.stdout.readline(), 60):
        told += 1
        if told == 4 and process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
    return await process.wait()


async def test_another_database_than_mysql_is_refused_and_a_missing_table_named(sqlite_url, mysql_database):
    with pytest.raises(ValueError, match="expected mysql://"):
        async with open_source(sqlite_url):
            pass
    with pytest.raises(Exception, match=r"execution_caches.*doesn't exist"):
        async with open_source(mysql_database.url) as source:
            await source.highest()


def test_the_command_imports_and_says_what_it_left_out(kubeflow, sqlite_database, monkeypatch):
    from typer.testing import CliRunner

    from memopod.cli.cache import app

    store(kubeflow, row(1), row(2, template(image="x"), MaxCacheStaleness=0))
    monkeypatch.setenv("MEMOPOD_KUBEFLOW_DATABASE", kubeflow.url)
    done = CliRunner().invoke(app, ["import", "-n", "pipelines", "--database", sqlite_database.url])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"1 entry imported of 2 rows\n  left out: 1, {DISABLED}\n"
    assert "2 of 2 rows" in done.stderr
    assert "next: memopod cache list --namespace pipelines" in done.stderr
    assert quote(kubeflow.server.password, safe="") not in done.output
    again = CliRunner().invoke(
        app, ["import", "-n", "pipelines", "--database", sqlite_database.url, "--json"]
    )
    assert json.loads(again.stdout) == {
        "rows": 0,
        "imported": 0,
        "left_out": {},
        "replaced": 0,
        "resumed": False,
    }
    listed = CliRunner().invoke(app, ["list", "--database", sqlite_database.url])
    assert listed.exit_code == 0


VERSIONS = ["3.4.17", "3.5.15", "3.7.18", "4.0.10", "4.1.2"]
RECORDED_TWICE = {
    "parameters.make": "held.make",
    "parameters.use": "held.use",
    "fanout.one-0": "fanout.one-0",
}
CREATOR = "system:serviceaccount:argo:argo"


def watched(number, pod, outputs):
    """The row that Kubeflow's watcher stores when the Pod succeeds: its template's text as it is."""
    text = template_text(pod)
    stored = {"workflows.argoproj.io/outputs": outputs, "pipelines.kubeflow.org/metadata_execution_id": ""}
    return {
        "ID": number, "ExecutionCacheKey": fingerprint(text), "ExecutionTemplate": text,
        "ExecutionOutput": json.dumps(stored), "MaxCacheStaleness": -1, "StartedAtInSec": number,
        "EndedAtInSec": number,
    }  # fmt: skip


def recorded_rows(sample):
    for number, (version, name) in enumerate(((v, n) for v in VERSIONS for n in RECORDED_TWICE), 1):
        declares = name == "parameters.make"
        # Argo 3.3, which still wrote the annotation, wrote what is a WorkflowTaskResult's today.
        outputs = json.dumps(sample(version, f"{name}.taskresult")["outputs"]) if declares else ""
        yield watched(number, sample(version, f"{name}.pod"), outputs)


async def judged(parts, pod):
    rules = PlaceholderRules(image="busybox", keeps_node_restrictions=False, timeout=30.0)
    policy = Policy(secret=b"s" * 32, trusted_creators=frozenset({CREATOR}), hold_seconds=30.0)
    request = AdmissionRequest(
        uid="1", resource=Resource("", "v1", "pods"), namespace="kubeflow", userInfo=User(CREATOR),
        object=msgspec.json.decode(msgspec.json.encode(pod), type=PodText), dryRun=False,
    )  # fmt: skip
    return await placeholders(policy, parts.decider, lambda: True, rules)(request)


@pytest.mark.parametrize(("width", "kind"), [(191, "sqlite"), (255, "mysql")])
async def test_a_recorded_step_is_reused_by_the_row_of_its_other_run(
    kubeflow_of, request, sample, cluster, bucket, parts, width, kind
):
    source = kubeflow_of(width)
    await insert(source, *recorded_rows(sample))
    url = source.url if kind == "mysql" else request.getfixturevalue("sqlite_database").url
    async with open_entries(url, call_timeout=60) as entries:
        done = await importing(source.url, entries, "kubeflow")
        assert set(done.left_out) == {OLDER}
        placeholder_mode = type(parts)(cluster, entries, bucket)
        for version in VERSIONS:
            for name in RECORDED_TWICE.values():
                pod = sample(version, f"{name}.admission")["request"]["object"]
                verdict = await judged(placeholder_mode, pod)
                assert verdict.reason == "hit", (version, name)
                [annotations] = [o["value"] for o in verdict.patch if o["path"] == "/metadata/annotations"]
                given = json.loads(annotations[names.ARGO_OUTPUTS]).get("parameters") or ()
                assert [p["value"] for p in given] == (["hello"] if name == "held.make" else [])


async def test_what_an_earlier_version_imported_is_imported_again_and_hits(
    kubeflow, sqlite_database, sample, cluster, bucket, parts
):
    await insert(kubeflow, *recorded_rows(sample))
    async with open_entries(sqlite_database.url, call_timeout=60) as entries:
        before = await importing(kubeflow.url, entries, "kubeflow")
        # As that was: under the fingerprint alone, without components, and done with.
        for number, entry in enumerate(await entries.list(limit=1000)):
            await entries.retire(entry.id, "test")
            print_ = entry.key.rpartition(":")[2]
            await entries.put(
                replace(entry, id=f"{number:032}", key=f"kubeflow:{print_}", components={}, pinned=True)
            )
        sqlite_database.query("UPDATE imports SET source = 'an earlier form of it'")
        mode = type(parts)(cluster, entries, bucket)
        pod = sample("4.1.2", "held.make.admission")["request"]["object"]
        assert (await judged(mode, pod)).reason == "miss"

        again = await importing(kubeflow.url, entries, "kubeflow")
        assert (again.imported, again.replaced) == (before.imported, before.imported)
        # The one that found none asks the namespace again after ten seconds.
        other = type(parts)(cluster, entries, bucket)
        assert (await judged(other, pod)).reason == "hit"
        assert len(await entries.list(limit=1000)) == before.imported
        assert (await importing(kubeflow.url, entries, "kubeflow")).replaced == 0
