"""Retention by age, idleness and number, on every database."""

import asyncio
import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event

from cache_server.entries import open_entries
from cache_server.entries.catalog import Catalog
from cache_server.entries.counts import Counts, read_counts
from cache_server.entries.retention import Limits, keep_within, sweep
from cache_server.entries.schema import EPOCH

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def aged(make_entry):
    """An entry that finished, and was recorded, so many days ago."""
    first = make_entry()

    def aged(days, namespace="pipelines", **changes):
        at = NOW - days * DAY
        fresh = {"id": uuid.uuid4().hex, "key": uuid.uuid4().hex, "pod_uid": uuid.uuid4().hex}
        times = {"started_at": at, "finished_at": at, "recorded_at": at}
        return replace(first, namespace=namespace, **fresh, **{**times, **changes})

    return aged


async def standing(entries):
    return {entry.id for entry in await entries.list(limit=10_000)}


async def test_what_is_older_than_the_age_goes_however_often_it_was_used(entries, aged):
    old, young = aged(31), aged(29)
    await entries.put_all([old, young])
    await entries.used(old.id, NOW)
    assert await sweep(entries.database, Limits(age=30 * DAY), now=NOW) == {"age": 1, "idle": 0, "number": 0}
    assert await standing(entries) == {young.id}


async def test_what_was_idle_for_long_goes_and_a_use_extends_its_life(entries, aged):
    idle, used, late = aged(40), aged(40), aged(40, recorded_at=NOW - DAY)
    await entries.put_all([idle, used, late])
    await entries.used(used.id, NOW - DAY)
    assert (await sweep(entries.database, Limits(idle=30 * DAY), now=NOW))["idle"] == 1
    assert await standing(entries) == {used.id, late.id}


async def test_of_each_namespace_so_many_stay_and_those_idle_longest_go(entries, aged):
    here = [aged(days) for days in range(1, 6)]
    there = [aged(days, "other") for days in range(1, 3)]
    await entries.put_all([*here, *there])
    await entries.used(here[4].id, NOW)
    assert (await sweep(entries.database, Limits(number=3), now=NOW))["number"] == 2
    assert await standing(entries) == {e.id for e in (here[4], here[0], here[1], *there)}


async def test_a_pinned_entry_stays_until_it_is_let_go(entries, aged):
    kept, gone = aged(100), aged(100)
    await entries.put_all([kept, gone])
    catalog = Catalog(entries.database)
    assert await catalog.pin(kept.id, True)
    assert not await catalog.pin("0" * 32, True)
    limits = Limits(age=DAY, idle=DAY, number=0)
    await sweep(entries.database, limits, now=NOW)
    assert await standing(entries) == {kept.id}
    assert (await entries.get(kept.id)).pinned
    await catalog.pin(kept.id, False)
    await sweep(entries.database, limits, now=NOW)
    assert await standing(entries) == set()


async def test_it_goes_in_batches_past_pinned_ones_and_ends_when_it_is_told_to(entries, aged):
    made = [aged(50) for _ in range(11)]
    await entries.put_all(made)
    for entry in made[:3]:
        await Catalog(entries.database).pin(entry.id, True)
    turns = iter([True, True, False])
    part = await sweep(entries.database, Limits(age=DAY), now=NOW, batch=2, go_on=lambda: next(turns))
    assert part["age"] == 4
    assert (await sweep(entries.database, Limits(age=DAY), now=NOW, batch=2))["age"] == 4
    assert await standing(entries) == {entry.id for entry in made[:3]}


async def test_a_dry_run_counts_and_deletes_nothing(entries, aged):
    made = [aged(50) for _ in range(5)]
    await entries.put_all(made)
    told = await sweep(entries.database, Limits(age=DAY), now=NOW, batch=2, dry_run=True)
    assert told["age"] == 5
    assert len(await standing(entries)) == 5


async def test_only_the_namespace_that_is_asked_for_is_swept(entries, aged):
    here, there = aged(50), aged(50, "other")
    await entries.put_all([here, there])
    await sweep(entries.database, Limits(age=DAY, idle=DAY, number=0), now=NOW, namespace="other")
    assert await standing(entries) == {here.id}


async def test_what_is_deleted_changes_the_token_of_its_namespace(entries, aged):
    gone = aged(50)
    await entries.put_all([gone, aged(1, "other")])
    before = [(await entries.read(name, "")).token for name in ("pipelines", "other")]
    await sweep(entries.database, Limits(idle=DAY * 2), now=NOW)
    after = [(await entries.read(name, "")).token for name in ("pipelines", "other")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]


async def test_what_is_used_between_the_look_and_the_deletion_stays(entries, aged):
    lucky, gone = aged(50), aged(50)
    await entries.put_all([lucky, gone])
    call = entries.database.call

    async def interfering(name, work):
        result = await call(name, work)
        if name == "retention" and isinstance(result, list) and len(result) == 2:
            await entries.used(lucky.id, NOW)
        return result

    entries.database.call = interfering
    assert (await sweep(entries.database, Limits(idle=DAY), now=NOW))["idle"] == 1
    assert await standing(entries) == {lucky.id}


async def test_the_job_sweeps_while_it_leads_and_only_then(sqlite_url, aged):
    async with open_entries(sqlite_url) as entries:
        await entries.put(aged(500))
        leading = False
        asked = asyncio.Event()

        def leads():
            asked.set()
            return leading

        often = {"interval": DAY.total_seconds(), "first": (0.001, 0.01)}
        job = asyncio.create_task(keep_within(entries.database, Limits(idle=DAY), leads=leads, **often))
        await asyncio.wait_for(asked.wait(), 20)
        assert len(await standing(entries)) == 1
        leading = True
        async with asyncio.timeout(20):
            while await standing(entries):  # noqa: ASYNC110 (polls the database)
                await asyncio.sleep(0.01)
        job.cancel()


async def test_the_first_sweep_is_soon_after_the_start_and_not_at_the_same_moment_everywhere():
    moments, interval = set(), 3600.0

    async def noted(seconds):
        moments.add(seconds)
        raise asyncio.CancelledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache_server.entries.retention.asyncio.sleep", noted)
        for _ in range(20):
            with pytest.raises(asyncio.CancelledError):
                await keep_within(None, Limits(idle=DAY), leads=lambda: True, interval=interval)
    assert len(moments) > 1
    assert max(moments) <= 60 < interval


async def test_every_statement_goes_by_an_index(url, database, aged):
    """As each database itself explains the statements that it was sent."""
    async with open_entries(url, call_timeout=60) as entries:
        await entries.put_all([aged(n % 100) for n in range(3000)])
        engine = entries.database.engine
        analyze = {"sqlite": "ANALYZE entries", "mysql": "ANALYZE TABLE entries"}
        database.query(analyze.get(database.kind, "VACUUM ANALYZE entries"))
        sent = []
        event.listen(
            engine.sync_engine, "before_cursor_execute", lambda *call: sent.append((call[2], call[3]))
        )
        await sweep(entries.database, Limits(age=98 * DAY, idle=97 * DAY, number=2850), now=NOW)
        asked = [(told, values) for told, values in sent if "FROM entries" in told]
        assert {told.split()[0] for told, _ in asked} == {"SELECT", "DELETE"}
        assert len(asked) > 8
        ways = {"sqlite": "QUERY PLAN ", "mysql": "FORMAT=TRADITIONAL ", "postgresql": ""}
        prefix = f"EXPLAIN {ways[database.kind]}"
        async with engine.connect() as connection:
            for told, values in asked:
                plan = (await connection.exec_driver_sql(prefix + told, values)).all()
                assert uses_index(database.kind, plan), (told, plan)


def uses_index(kind, plan):
    if kind == "sqlite":
        return all(re.match(r"SEARCH entries USING|USE TEMP B-TREE", row[3]) for row in plan)
    if kind == "mysql":
        return all(
            row.type in {"range", "ref", "const"} or "min/max" in row.Extra or "optimized away" in row.Extra
            for row in plan
        )
    return "Seq Scan" not in "".join(row[0] for row in plan)


async def test_decisions_are_counted_by_day_and_written_together(entries, make_entry):
    entry = make_entry()
    took = (entry.finished_at - entry.started_at).total_seconds()
    await entries.put(entry)
    counts = Counts(entries.database)
    for day in (1, 2, 2):
        counts.add(
            namespace="pipelines", template="train", reason="hit", entry_id=entry.id,
            at=datetime(2026, 1, day, 23, 59, tzinfo=UTC),
        )  # fmt: skip
    counts.add(namespace="pipelines", template="train", reason="miss", at=datetime(2026, 1, 2, tzinfo=UTC))
    counts.add(namespace="other", template="train", reason="stale", at=datetime(2026, 1, 2, tzinfo=UTC))
    await counts.write()
    await counts.write()
    counts.add(namespace="pipelines", template="train", reason="miss", at=datetime(2026, 1, 2, tzinfo=UTC))
    await counts.write()
    second = (datetime(2026, 1, 2, tzinfo=UTC) - EPOCH).days
    told = await read_counts(entries.database, namespace=None, first_day=second)
    assert {(c.namespace, c.reason, c.decided): c.seconds_saved for c in told} == {
        ("pipelines", "hit", 2): pytest.approx(2 * took, abs=0.01),
        ("pipelines", "miss", 2): 0,
        ("other", "stale", 1): 0,
    }
    [only] = await read_counts(entries.database, namespace="other", first_day=0)
    assert (only.template, only.reason) == ("train", "stale")


async def test_counts_of_two_replicas_add_up(entries):
    replicas = [Counts(entries.database) for _ in range(4)]
    for each in replicas:
        for n in range(20):
            each.add(namespace="n", template=f"t{n % 5}", reason="miss", at=NOW)
    await asyncio.gather(*(each.write() for each in replicas))
    told = await read_counts(entries.database, namespace="n", first_day=0)
    assert [(c.template, c.decided) for c in told] == [(f"t{n}", 16) for n in range(5)]


async def test_counts_that_cannot_be_written_are_kept_for_the_next_time(entries, database):
    counts = Counts(entries.database)
    counts.add(namespace="n", template="t", reason="miss", at=NOW)
    rename = {"mysql": "RENAME TABLE {} TO {}"}.get(database.kind, "ALTER TABLE {} RENAME TO {}")
    database.query(rename.format("decisions", "away"))
    with pytest.raises(Exception, match="counts"):
        await counts.write()
    database.query(rename.format("away", "decisions"))
    await counts.write()
    assert [c.decided for c in await read_counts(entries.database, namespace=None, first_day=0)] == [1]
