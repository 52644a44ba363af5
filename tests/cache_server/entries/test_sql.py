import asyncio
import sqlite3
import time
import traceback
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event
from structlog.testing import capture_logs

from cache_server.entries import EntriesUnavailable, open_entries
from memopod.steps import Location, OutputArtifact, Outputs

SECOND = timedelta(seconds=1)
POD = "run-1-train-123"
"""The Pod of `make_entry`, of the workflow `run-1`."""


async def test_an_entry_is_found_as_it_was_put(entries, make_entry):
    entry = make_entry()
    assert await entries.put(entry)
    assert await entries.find("pipelines", entry.key) == entry
    assert await entries.get(entry.id) == entry


async def test_an_entry_without_what_is_optional_is_found_as_it_was_put(entries, make_entry):
    entry = make_entry(
        execution_id=None, max_staleness_seconds=None, components={}, outputs=Outputs(parameters={})
    )
    await entries.put(entry)
    assert await entries.get(entry.id) == entry


async def test_a_key_of_another_namespace_is_not_found(entries, make_entry):
    entry = make_entry()
    await entries.put(entry)
    assert await entries.find("other", entry.key) is None
    assert await entries.find("pipelines", "cd" * 32) is None
    assert await entries.get("0" * 32) is None


async def test_a_newer_success_replaces_with_its_own_id_and_no_uses(entries, make_entry):
    old = make_entry()
    new = make_entry(finished_at=old.finished_at + SECOND)
    await entries.put(old)
    await entries.used(old.id, old.finished_at)
    assert await entries.put(new)
    assert await entries.get(old.id) is None
    assert await entries.find("pipelines", old.key) == new


async def test_an_older_success_never_replaces_a_newer_one(entries, make_entry):
    new = make_entry()
    await entries.put(new)
    assert not await entries.put(make_entry(finished_at=new.finished_at - timedelta(microseconds=1)))
    assert not await entries.put(make_entry())
    assert await entries.find("pipelines", new.key) == new


async def test_the_same_entry_put_again_stands_unchanged(entries, make_entry):
    entry = make_entry()
    await entries.put(entry)
    await entries.used(entry.id, entry.finished_at)
    assert await entries.put(entry)
    assert (await entries.get(entry.id)).uses == 1


async def test_another_entry_of_the_same_pod_changes_nothing(entries, make_entry):
    first = make_entry()
    await entries.put(first)
    again = make_entry(pod_uid=first.pod_uid, finished_at=first.finished_at + SECOND)
    assert not await entries.put(again)
    assert await entries.find("pipelines", first.key) == first


async def test_a_use_is_counted_and_the_last_one_is_remembered(entries, make_entry):
    entry = make_entry()
    await entries.put(entry)
    late = datetime(2026, 2, 1, tzinfo=UTC)
    await entries.used(entry.id, late)
    await entries.used(entry.id, late - SECOND)
    found = await entries.get(entry.id)
    assert (found.uses, found.last_used_at) == (2, late)
    assert found.saved == 2 * (entry.finished_at - entry.started_at)


async def test_a_use_of_an_entry_that_is_gone_is_no_error(entries):
    await entries.used("0" * 32, datetime.now(UTC))


async def test_a_retired_entry_is_gone_and_the_reason_is_logged(entries, make_entry):
    entry = make_entry()
    await entries.put(entry)
    with capture_logs() as logs:
        assert await entries.retire(entry.id, "artifact-gone")
        assert not await entries.retire(entry.id, "artifact-gone")
    assert [(line["event"], line["reason"]) for line in logs] == [("entry retired", "artifact-gone")]
    assert await entries.find("pipelines", entry.key) is None
    assert await entries.put(make_entry(finished_at=entry.finished_at - SECOND))


async def test_a_pod_is_recorded_while_its_entry_stands(entries, make_entry):
    entry = make_entry()
    assert not await entries.recorded(entry.pod_uid)
    await entries.put(entry)
    assert await entries.recorded(entry.pod_uid)
    await entries.retire(entry.id, "test")
    assert not await entries.recorded(entry.pod_uid)


async def test_a_listing_is_filtered_limited_and_newest_first(entries, make_entry):
    kept = [
        make_entry(
            key=f"{n:064x}",
            namespace="a" if n % 2 else "b",
            template_name="x" if n < 4 else "y",
            finished_at=datetime(2026, 1, 1, tzinfo=UTC) + n * SECOND,
        )
        for n in range(6)
    ]
    for entry in kept:
        await entries.put(entry)
    kept.reverse()
    assert await entries.list() == kept
    assert await entries.list(limit=2) == kept[:2]
    assert await entries.list("a") == [e for e in kept if e.namespace == "a"]
    assert await entries.list(None, "x") == [e for e in kept if e.template_name == "x"]
    assert await entries.list("a", "y") == [kept[0]]


async def test_a_listing_by_the_beginning_of_an_id_takes_it_literally(entries, make_entry):
    one, other = make_entry(id="ab" * 16), make_entry(id="ac" * 16, key="ef" * 32)
    await entries.put(one)
    await entries.put(other)
    assert len(await entries.list(id_prefix="a")) == 2
    assert await entries.list(id_prefix="ab") == [one]
    assert await entries.list(id_prefix="a_") == []
    assert await entries.list(id_prefix="%") == []


def put_out(*keys, bucket="pipelines"):
    return Outputs(
        parameters={},
        artifacts=tuple(
            OutputArtifact(name=f"a{n}", location=Location("s3", "minio:9000", bucket, key), reported={})
            for n, key in enumerate(keys)
        ),
    )


def at(key, bucket="pipelines"):
    return Location("s3", "minio:9000", bucket, key)


async def test_the_producer_of_a_location_is_found_by_its_pod(entries, make_entry):
    entry = make_entry(outputs=put_out(f"{POD}/a", f"deep/run-1/{POD}/ü\"'%_\\.tgz", POD))
    await entries.put(entry)
    for artifact in entry.outputs.artifacts:
        assert await entries.producer("pipelines", artifact.location) == entry


async def test_a_location_that_does_not_name_its_pod_has_no_producer(entries, make_entry):
    await entries.put(
        make_entry(outputs=put_out("fixed/model", "run-1/model", f"{POD}4/model", f"my-{POD}/model"))
    )
    for key in ("fixed/model", "run-1/model", f"{POD}4/model", f"my-{POD}/model", ""):
        assert await entries.producer("pipelines", at(key)) is None


async def test_a_location_that_is_not_exactly_an_output_has_no_producer(entries, make_entry):
    await entries.put(make_entry(outputs=put_out(f"{POD}/model.tgz")))
    for location in (at(f"{POD}/MODEL.tgz"), at(f"{POD}/model"), at(f"{POD}/model.tgz", "other")):
        assert await entries.producer("pipelines", location) is None
    assert await entries.producer("other", at(f"{POD}/model.tgz")) is None


async def test_the_producer_is_the_newest_that_wrote_the_location(entries, make_entry):
    outputs = put_out(f"{POD}/shared")
    old = make_entry(outputs=outputs)
    new = make_entry(outputs=outputs, key="cd" * 32, finished_at=old.finished_at + SECOND)
    await entries.put(new)
    await entries.put(old)
    assert await entries.producer("pipelines", at(f"{POD}/shared")) == new


async def test_a_locked_database_is_unavailable_within_the_deadline_and_usable_afterwards(
    sqlite_url, tmp_path, make_entry
):
    entry = make_entry()
    async with open_entries(sqlite_url, call_timeout=0.4) as entries:
        with closing(sqlite3.connect(tmp_path / "cache.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            begun = time.monotonic()
            with pytest.raises(EntriesUnavailable, match="put: database is locked") as raised:
                await entries.put(entry)
            assert time.monotonic() - begun < 2
            assert isinstance(raised.value.__cause__, Exception)
            # Readers go on beside a writer.
            assert await entries.find("pipelines", entry.key) is None
            other.rollback()
        assert await entries.put(entry)


async def test_every_call_ends_at_the_deadline_and_the_next_one_works(sqlite_url, tmp_path, make_entry):
    async with open_entries(sqlite_url, call_timeout=0.2) as entries:
        # A database that waits longer than the deadline: the call is cancelled under it.
        @event.listens_for(entries.database.engine.sync_engine, "connect")
        def patient(connection, _record):
            connection.execute("PRAGMA busy_timeout = 1500")

        with closing(sqlite3.connect(tmp_path / "cache.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            begun = time.monotonic()
            with pytest.raises(EntriesUnavailable, match=r"put: no answer within 0\.2 s"):
                await entries.put(make_entry())
            # Cancelling a statement waits for the driver to close its connection, two seconds at most.
            assert time.monotonic() - begun < 4
            other.rollback()
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await entries.put(make_entry()) in (True, False)
                    break
                except EntriesUnavailable:
                    continue


async def test_no_value_is_in_an_error(url, database, make_entry):
    entry = make_entry()
    async with open_entries(url) as entries:
        database.query("DROP TABLE entries")
        with pytest.raises(EntriesUnavailable) as raised:
            await entries.put(entry)
    text = "".join(traceback.format_exception(raised.value))
    assert any(told in str(raised.value) for told in ("no such table", "doesn't exist", "does not exist"))
    assert "0.1" not in text
    assert entry.pod_name not in text


async def test_what_does_not_fit_is_refused_and_not_cut_off(served, make_entry):
    entry = make_entry(template_name="x" * 254)
    async with open_entries(served.url) as entries:
        with pytest.raises(EntriesUnavailable, match="put"):
            await entries.put(entry)
        assert await entries.list() == []


@pytest.mark.parametrize("damage", ["'{'", "'{}'"])
async def test_a_row_that_is_no_entry_is_unavailable(entries, database, make_entry, damage):
    entry = make_entry()
    await entries.put(entry)
    database.query(f"UPDATE entries SET outputs = {damage}")
    with pytest.raises(EntriesUnavailable, match="a row that is no entry"):
        await entries.get(entry.id)


async def test_a_row_whose_time_is_no_number_is_unavailable(sqlite_database, make_entry):
    entry = make_entry()
    async with open_entries(sqlite_database.url) as entries:
        await entries.put(entry)
        sqlite_database.query("UPDATE entries SET finished_at = 'soon'")
        with pytest.raises(EntriesUnavailable, match="a row that is no entry"):
            await entries.get(entry.id)


async def test_a_naive_time_is_refused(entries, make_entry):
    naive = make_entry().finished_at.replace(tzinfo=None)
    with pytest.raises(EntriesUnavailable):
        await entries.put(replace(make_entry(), finished_at=naive))


async def test_opened_read_only_nothing_can_be_written(url, entries, make_entry):
    entry = make_entry()
    await entries.put(entry)
    async with open_entries(url, read_only=True) as reading:
        assert await reading.get(entry.id) == entry
        with pytest.raises(EntriesUnavailable, match=r"(?i)read.?only"):
            await reading.retire(entry.id, "test")
