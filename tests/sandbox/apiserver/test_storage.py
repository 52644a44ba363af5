import sqlite3

import pytest

from memopod.kube import CONFIG_MAPS, PODS
from memopod.sandbox.apiserver.storage import Expired, Storage


def named(name, **rest):
    return {"metadata": {"namespace": "n", "name": name}, **rest}


@pytest.fixture
def open_storage(tmp_path):
    opened = []

    def open_(**options):
        opened.append(Storage(tmp_path / "store.db", **options))
        return opened[-1]

    yield open_
    for storage in opened:
        storage.close()


async def test_each_write_gets_the_next_version(open_storage):
    storage = open_storage()
    first = storage.put(PODS, named("a"))
    second = storage.put(CONFIG_MAPS, named("a"))
    assert int(second["metadata"]["resourceVersion"]) == int(first["metadata"]["resourceVersion"]) + 1


async def test_objects_and_the_version_survive_a_restart(open_storage):
    storage = open_storage()
    kept = storage.put(PODS, named("kept"))
    storage.remove(PODS, storage.put(PODS, named("removed")))
    version = storage.version
    storage.close()
    storage = open_storage()
    assert storage.items(PODS) == [kept]
    assert storage.version == version


async def test_history_before_a_restart_has_expired(open_storage):
    storage = open_storage()
    storage.put(PODS, named("a"))
    version = storage.version
    storage.put(PODS, named("b"))
    storage.close()
    storage = open_storage()
    assert storage.since(PODS, version + 1) == []
    with pytest.raises(Expired):
        storage.since(PODS, version)


async def test_only_as_many_changes_are_kept_as_was_said(open_storage):
    storage = open_storage(history=2)
    start = storage.version
    for name in "abc":
        storage.put(PODS, named(name))
    assert [change.after["metadata"]["name"] for change in storage.since(PODS, start + 1)] == ["b", "c"]
    with pytest.raises(Expired):
        storage.since(PODS, start)
    assert storage.since(CONFIG_MAPS, start) == []


async def test_a_version_of_the_future_has_expired_too(open_storage):
    storage = open_storage()
    with pytest.raises(Expired):
        storage.since(PODS, storage.version + 1)


async def test_a_second_server_on_the_same_file_is_refused(open_storage, monkeypatch):
    monkeypatch.setattr("memopod.sandbox.apiserver.storage._LOCK_SECONDS", 0.05)
    open_storage()
    with pytest.raises(OSError, match="cannot be used"):
        open_storage()


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "store.db"
    path.write_text("something else " * 100)
    with pytest.raises(OSError, match="cannot be used"):
        Storage(path)


async def test_a_failed_write_leaves_no_trace_in_memory(open_storage):
    storage = open_storage()
    version = storage.version
    storage._database.execute("DROP TABLE objects")
    with pytest.raises(sqlite3.OperationalError):
        storage.put(PODS, named("a"))
    assert storage.items(PODS) == []
    assert storage.version == version


async def test_a_change_wakes_those_who_wait_for_its_kind_only(open_storage):
    storage = open_storage()
    pods, config_maps = storage.changed(PODS), storage.changed(CONFIG_MAPS)
    storage.put(PODS, named("a"))
    assert pods.is_set()
    assert not config_maps.is_set()
    storage.wake()
    assert config_maps.is_set()
