from sqlalchemy import event

from cache_server.entries import open_entries
from cache_server.entries.imported import (
    KEY_VERSION_IMPORTED,
    ImportedEntries,
    find_imported,
    imported_key,
)

FINGERPRINT = "07f2c42567af4f141a52887e0a113c9aefdfdfd5e6b06b9908f7fdb0b43739af"


async def test_an_imported_entry_is_found_by_its_fingerprint_in_its_namespace_only(entries, make_entry):
    entry = make_entry(key=imported_key(FINGERPRINT), key_version=KEY_VERSION_IMPORTED)
    await entries.put(entry)
    assert await find_imported(entries, "pipelines", FINGERPRINT) == entry
    assert await find_imported(entries, "other", FINGERPRINT) is None


async def test_an_imported_entry_is_never_found_by_a_key_of_memopods(entries, make_entry):
    await entries.put(make_entry(key=imported_key(FINGERPRINT)))
    assert await entries.find("pipelines", FINGERPRINT) is None
    own = make_entry(key=FINGERPRINT)
    await entries.put(own)
    assert await entries.find("pipelines", FINGERPRINT) == own


async def test_a_namespace_without_imported_entries_is_asked_again_after_ten_seconds(entries, make_entry):
    now = 100.0
    imported = ImportedEntries(entries, clock=lambda: now)
    assert await imported.find("pipelines", FINGERPRINT) is None
    entry = make_entry(key=imported_key(FINGERPRINT), key_version=KEY_VERSION_IMPORTED)
    await entries.put(entry)
    now += 9.9
    assert await imported.find("pipelines", FINGERPRINT) is None
    now += 0.2
    assert await imported.find("pipelines", FINGERPRINT) == entry


async def found_as_soon_as_it_is_there(imported, entries, make_entry):
    assert await imported.find("pipelines", FINGERPRINT) is None
    entry = make_entry(key=imported_key(FINGERPRINT), key_version=KEY_VERSION_IMPORTED)
    await entries.put(entry)
    assert await imported.find("pipelines", FINGERPRINT) == entry


async def test_in_a_namespace_with_an_imported_entry_each_step_is_looked_for(entries, make_entry):
    imported = ImportedEntries(entries, clock=lambda: 100.0)
    await entries.put(make_entry(key=imported_key("0" * 64), pod_uid="other"))
    await found_as_soon_as_it_is_there(imported, entries, make_entry)


async def test_whether_a_namespace_has_imported_entries_is_told_among_those_of_memopods_own(
    entries, make_entry
):
    imported = ImportedEntries(entries, clock=lambda: 100.0)
    for key in ("0" * 64, "f" * 64, "a9" * 32):
        await entries.put(make_entry(key=key, id=key[:32], pod_uid=key))
    await entries.put(make_entry(key=imported_key("0" * 64), pod_uid="other"))
    await found_as_soon_as_it_is_there(imported, entries, make_entry)


async def test_that_nothing_was_imported_is_told_without_reading_the_other_entries(
    sqlite_database, make_entry
):
    async with open_entries(sqlite_database.url) as entries:
        keys = [f"{n:064x}" for n in range(300)]
        await entries.put_all([make_entry(key=key, id=key[-32:], pod_uid=key) for key in keys])
        steps = []

        @event.listens_for(entries.database._reader.sync_engine, "checkout")
        def count(connection, *_):
            connection.driver_connection._conn.set_progress_handler(lambda: steps.append(1), 1)

        assert await entries.last_key("pipelines") == keys[-1]
    assert 0 < len(steps) < len(keys)
