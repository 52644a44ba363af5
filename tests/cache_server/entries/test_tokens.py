"""The token of a namespace changes with all that makes what was read of it wrong, and with nothing else."""

import asyncio
from datetime import timedelta

from cache_server.entries import migrate

SECOND = timedelta(seconds=1)


async def token(entries, namespace="pipelines"):
    return (await entries.read(namespace, "no key")).token


async def test_a_namespace_that_nothing_was_stored_in_has_no_token(entries):
    assert await token(entries) is None


async def test_a_new_entry_changes_no_token(entries, make_entry):
    await entries.put(make_entry())
    first = await token(entries)
    assert first is not None
    await entries.put(make_entry(key="cd" * 32))
    assert await token(entries) == first


async def test_a_replaced_entry_changes_the_token(entries, make_entry):
    old = make_entry()
    await entries.put(old)
    first = await token(entries)
    assert not await entries.put(make_entry())
    assert await token(entries) == first
    assert await entries.put(make_entry(finished_at=old.finished_at + SECOND))
    assert await token(entries) != first


async def test_a_retired_entry_changes_the_token_of_its_namespace(entries, make_entry):
    entry, other = make_entry(), make_entry(namespace="other")
    await entries.put(entry)
    await entries.put(other)
    first, others = await token(entries), await token(entries, "other")
    await entries.used(entry.id, entry.finished_at)
    assert await token(entries) == first
    await entries.retire(entry.id, "test")
    assert await token(entries) not in (None, first)
    assert await token(entries, "other") == others


async def test_of_two_writers_at_once_the_one_that_replaces_changes_the_token(entries, make_entry):
    for n in range(8):
        namespace = f"n{n}"
        old = make_entry(namespace=namespace)
        new = make_entry(namespace=namespace, finished_at=old.finished_at + SECOND)
        seen = set()

        async def look(namespace=namespace, key=old.key, seen=seen):
            while True:
                reading = await entries.read(namespace, key)
                if reading.entry is not None:
                    seen.add((reading.token, reading.entry.id))

        looking = asyncio.create_task(look())
        await asyncio.gather(entries.put(old), entries.put(new))
        last = await entries.read(namespace, old.key)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert last.entry == new
        # Whatever was read under the last token is what stands.
        assert {entry for read_with, entry in seen if read_with == last.token} <= {new.id}


async def test_entries_of_the_first_schema_get_their_tokens(database, entries, make_entry):
    await entries.put(make_entry())
    database.query("DELETE FROM tokens")
    database.query("UPDATE alembic_version SET version_num = '0001'")
    for table in ("imports", "decisions", "tokens"):
        database.query(f"DROP TABLE {table}")
    index = "DROP INDEX entries_namespace_active_at"
    database.query(f"{index} ON entries" if database.kind == "mysql" else index)
    for column in ("replaced", "active_at", "pinned"):
        database.query(f"ALTER TABLE entries DROP COLUMN {column}")
    await migrate(database.url)
    assert await token(entries) is not None
    [(active, recorded)] = database.query("SELECT active_at, recorded_at FROM entries")
    assert active == recorded
