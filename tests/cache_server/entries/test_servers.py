"""What only a server can do: restart, hang, deadlock, hold a lock, default to another charset."""

import asyncio
import sys
import time
import traceback
from dataclasses import replace

import pytest
import uvloop
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from cache_server.entries import EntriesUnavailable, migrate, open_entries
from cache_server.entries.creation import ensure_database
from cache_server.entries.databases import create_engine, describe
from cache_server.entries.migrations import check_schema
from memopod.steps import Outputs

EMOJI = "done 🎉 ✓ \U0001f9ea"

HOLDER = """
import asyncio, sys
from sqlalchemy import event, text
from cache_server.entries.databases import create_engine
from cache_server.entries.migrations import _lock_mysql, _lock_postgresql

async def hold():
    engine = create_engine(sys.argv[1], busy_timeout=5)
    async with engine.connect() as connection:
        await connection.run_sync({"mysql": _lock_mysql, "postgresql": _lock_postgresql}[sys.argv[2]])
        print("held", flush=True)
        await asyncio.sleep(100)

asyncio.run(hold())
"""


async def until_it_works(call, seconds=30):
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except EntriesUnavailable:
                await asyncio.sleep(0.05)


async def test_outputs_with_emoji_are_stored_and_found(entries, make_entry):
    entry = make_entry(outputs=Outputs(parameters={"message": EMOJI}, result=EMOJI), template_name=EMOJI)
    await entries.put(entry)
    assert await entries.get(entry.id) == entry
    assert await entries.list(template=EMOJI) == [entry]


async def test_connections_that_were_opened_before_serve_the_first_look_ups(served):
    async with open_entries(served.url, call_timeout=30) as entries:
        opened = []
        event.listen(entries.database._reader.sync_engine, "connect", lambda *_: opened.append(1))
        await entries.database.connect()
        assert len(opened) == 8
        await asyncio.gather(*(entries.find("pipelines", str(n)) for n in range(100)))
        assert len(opened) == 8


async def test_connections_that_cannot_be_opened_are_told_as_any_other_failure(served):
    async with open_entries(served.url) as entries:
        served.server.hang(True)
        try:
            with pytest.raises(EntriesUnavailable):
                await entries.database.connect()
        finally:
            served.server.hang(False)


async def test_outputs_of_a_megabyte_are_stored_and_found(entries, make_entry):
    entry = make_entry(outputs=Outputs(parameters={"message": EMOJI * 100_000}))
    await entries.put(entry)
    assert await entries.get(entry.id) == entry


async def test_names_that_differ_in_case_are_different(entries, make_entry):
    await entries.put(make_entry(template_name="Train"))
    assert await entries.list(template="train") == []


def test_mysql_keeps_utf8mb4_in_a_database_of_another_charset(mysql_database):
    assert mysql_database.query("SELECT @@character_set_database") == [("latin1",)]
    asyncio.run(migrate(mysql_database.url))
    found = mysql_database.query(
        "SELECT DISTINCT character_set_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = DATABASE() AND table_name = 'entries' AND character_set_name IS NOT NULL"
    )
    assert found == [("utf8mb4", "utf8mb4_bin")]


async def test_postgresql_refuses_a_database_that_cannot_hold_every_character(postgresql_database):
    database = postgresql_database
    name = f"{database.name}_latin"
    database.query(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0")
    url = f"{database.url}_latin"
    with pytest.raises(OSError, match=r"its encoding is LATIN1; create it with ENCODING 'UTF8'"):
        await migrate(url)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_restarted_server_is_found_again(served, make_entry, loop):
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_restart(served, make_entry()))


async def _restart(served, entry):
    async with open_entries(served.url, call_timeout=3) as entries:
        await asyncio.gather(*(entries.put(replace(entry, key=f"{n:02x}", id=f"{n:032x}")) for n in range(6)))
        served.server.crash()
        with pytest.raises(EntriesUnavailable) as raised:
            await entries.get(entry.id)
        told = "".join(traceback.format_exception(raised.value))
        await asyncio.to_thread(served.server.start)
        assert await until_it_works(lambda: entries.put(entry))
        assert await entries.get(entry.id) == entry
    assert served.server.password not in told
    assert served.server.password not in str(raised.value)


async def test_a_server_that_hangs_costs_no_more_than_the_deadline(served, make_entry):
    entry = make_entry()
    async with open_entries(served.url, call_timeout=0.5) as entries:
        assert await until_it_works(lambda: entries.put(entry))
        served.server.hang(True)
        try:
            for _ in range(3):
                begun = time.monotonic()
                with pytest.raises(EntriesUnavailable, match=r"find: no answer within 0\.5 s"):
                    await entries.find("pipelines", entry.key)
                assert time.monotonic() - begun < 1.5
        finally:
            served.server.hang(False)
        assert await until_it_works(lambda: entries.find("pipelines", entry.key)) == entry


async def test_a_row_that_another_holds_is_waited_for_within_the_deadline(served, make_entry):
    entry = make_entry()
    async with open_entries(served.url, call_timeout=1) as entries:
        await entries.put(entry)
        engine = create_engine(served.url, busy_timeout=1)
        async with engine.begin() as other:
            await other.execute(text("UPDATE entries SET uses = 7"))
            begun = time.monotonic()
            with pytest.raises(EntriesUnavailable, match="used: "):
                await entries.used(entry.id, entry.finished_at)
            assert time.monotonic() - begun < 2
        await engine.dispose()
        await entries.used(entry.id, entry.finished_at)
        assert (await entries.get(entry.id)).uses == 8


async def test_a_transaction_that_loses_a_deadlock_is_tried_again(served, make_entry):
    one, other = make_entry(), make_entry(key="cd" * 32)
    async with open_entries(served.url, call_timeout=20) as entries:
        await entries.put(one)
        await entries.put(other)
        met = asyncio.Barrier(2)
        losses = []

        def touching(first, second):
            async def work(connection):
                update = text("UPDATE entries SET uses = uses + 1 WHERE id = :id")
                await connection.execute(update, {"id": first.id})
                if not losses:
                    async with asyncio.timeout(10):
                        await met.wait()
                try:
                    await connection.execute(update, {"id": second.id})
                except DBAPIError as error:
                    losses.append(error)
                    raise

            return work

        with capture_logs() as logs:
            await asyncio.gather(
                entries.database.call("a", touching(one, other)),
                entries.database.call("b", touching(other, one)),
            )
        assert len(losses) == 1
        assert [line["event"] for line in logs] == ["transaction tried again"]
        assert [(await entries.get(e.id)).uses for e in (one, other)] == [2, 2]


async def test_a_transaction_that_always_loses_is_given_up(served):
    async with open_entries(served.url, call_timeout=10) as entries:
        tries = []

        async def work(connection):
            tries.append(1)
            raising = {
                "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'",
                "postgresql": "DO $$ BEGIN RAISE 'deadlock found' USING ERRCODE = '40P01'; END $$",
            }
            await connection.execute(text(raising[served.kind]))

        with pytest.raises(EntriesUnavailable, match=r"(?i)deadlock"):
            await entries.database.call("a", work)
        assert len(tries) == 5


async def test_a_migration_waits_for_another_and_a_dead_ones_lock_is_free(served):
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, served.url, served.kind, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await asyncio.wait_for(holder.stdout.readline(), 30) == b"held\n"
        migrating = asyncio.create_task(migrate(served.url))
        done, _ = await asyncio.wait({migrating}, timeout=0.5)
        assert not done
    finally:
        holder.kill()
        await holder.wait()
    async with asyncio.timeout(20):
        await migrating
    await check_schema(served.url)


async def test_a_migration_that_was_killed_halfway_goes_on_where_it_ended(mysql_database):
    await migrate(mysql_database.url)
    for name in ("entries_finished_at", "entries_pod_uid"):
        mysql_database.query(f"DROP INDEX {name} ON entries")
    mysql_database.query("DELETE FROM alembic_version")
    await migrate(mysql_database.url)
    await check_schema(mysql_database.url)
    indexes = mysql_database.query("SHOW INDEX FROM entries")
    assert {"entries_finished_at", "entries_pod_uid"} <= {row[2] for row in indexes}


async def test_a_wrong_password_is_refused_and_not_repeated(served):
    url = served.url.replace(":hunter2", ":wrong2")
    for attempt in (migrate, check_schema):
        with pytest.raises(OSError, match="cannot open the database") as raised:
            await attempt(url)
        assert describe(url) in str(raised.value)
        assert "wrong2" not in "".join(traceback.format_exception(raised.value))


async def test_a_server_that_is_away_is_named(served):
    url = served.url.replace(str(served.server.port), "1")
    with pytest.raises(OSError, match=r"cannot open the database .*@127\.0\.0\.1:1/.*: "):
        await migrate(url)


async def cipher(url):
    engine = create_engine(url, busy_timeout=5)
    try:
        async with engine.connect() as connection:
            [(_, value)] = (await connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'"))).all()
            return value
    finally:
        await engine.dispose()


async def test_a_connection_is_encrypted_where_the_url_asks_for_it(mysql_database, monkeypatch):
    url, checked = mysql_database.url, f"{mysql_database.url}?tls=true"
    assert await cipher(url) == ""
    assert await cipher(f"{url}?tls=skip-verify") != ""
    with pytest.raises(OSError, match="cannot open the database"):
        await migrate(checked)
    monkeypatch.setenv("SSL_CERT_FILE", str(mysql_database.server.folder / "state" / "tls" / "ca.crt"))
    assert await cipher(checked) != ""
    await ensure_database(checked)
    await migrate(checked)
    await check_schema(url)


async def test_a_database_that_is_made_is_made_over_tls_too(mysql_database):
    name = mysql_database.name
    mysql_database.query(f"CREATE USER {name}@'%' IDENTIFIED BY 'hunter2' REQUIRE SSL")
    mysql_database.query(f"GRANT ALL ON *.* TO {name}@'%'")
    plain = f"mysql://{name}:hunter2@127.0.0.1:{mysql_database.server.port}/{name}made"
    with pytest.raises(OSError, match="cannot be opened or made"):
        await ensure_database(plain)
    await ensure_database(f"{plain}?tls=skip-verify")
    await migrate(f"{plain}?tls=skip-verify")


async def test_where_a_server_offers_no_tls_no_plain_connection_is_made(postgresql_database):
    with pytest.raises(OSError, match="cannot open the database"):
        await migrate(f"{postgresql_database.url}?tls=skip-verify")
