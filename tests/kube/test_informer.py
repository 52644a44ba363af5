import asyncio
from typing import Any, TypedDict

import msgspec
import pytest
from structlog.testing import capture_logs

from memopod.kube import CONFIG_MAPS, PODS, Client, Informer
from memopod.kube.decoding import decoder

NS = "pipelines"


class Recorder:
    """What an informer told, as (type, name)."""

    def __init__(self):
        self.events = []

    def __call__(self, kind, item):
        self.events.append((kind, item["metadata"]["name"]))

    def take(self):
        taken, self.events = self.events, []
        return taken


@pytest.fixture
def seen():
    return Recorder()


async def make(client, name, **labels):
    return await client.create(CONFIG_MAPS, {"metadata": {"name": name, "labels": labels}}, namespace=NS)


async def touch(client, name, value="1"):
    await client.patch(CONFIG_MAPS, name, {"data": {"k": value}}, namespace=NS)


async def test_what_is_there_and_what_happens_is_told(client, start, seen, eventually):
    await make(client, "a")
    informer = Informer(client, CONFIG_MAPS, on_event=seen)
    start(informer.run())
    await informer.synced.wait()
    assert seen.take() == [("ADDED", "a")]
    assert informer.objects[NS, "a"]["kind"] == "ConfigMap"
    await make(client, "b")
    await touch(client, "a")
    await client.delete(CONFIG_MAPS, "b", namespace=NS)
    await eventually(lambda: len(seen.events) == 3)
    assert seen.take() == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
    assert list(informer.objects) == [(NS, "a")]
    assert informer.objects[NS, "a"]["data"] == {"k": "1"}


async def test_only_the_selected_part_is_followed(client, start, seen, eventually):
    informer = Informer(client, CONFIG_MAPS, namespace=NS, label_selector="app=x", on_event=seen)
    start(informer.run())
    await informer.synced.wait()
    await make(client, "other")
    await make(client, "a", app="x")
    await client.patch(CONFIG_MAPS, "a", {"metadata": {"labels": {"app": None}}}, namespace=NS)
    await eventually(lambda: len(seen.events) == 2)
    assert seen.take() == [("ADDED", "a"), ("DELETED", "a")]


async def test_a_cut_connection_loses_and_repeats_nothing(client, wired, wire, start, seen, eventually):
    await make(client, "a")
    informer = Informer(wired, CONFIG_MAPS, on_event=seen)
    start(informer.run())
    await informer.synced.wait()
    for number in range(3):
        wire.cut()
        await touch(client, "a", str(number))
        await eventually(lambda number=number: len(seen.events) == number + 2)
    assert seen.take() == [("ADDED", "a"), *[("MODIFIED", "a")] * 3]


async def test_after_a_gap_that_is_not_kept_the_difference_is_told(
    client, wired, wire, start, seen, eventually
):
    for name in ("kept", "changed", "vanished", "again"):
        await make(client, name)
    informer = Informer(wired, CONFIG_MAPS, on_event=seen)
    start(informer.run())
    await informer.synced.wait()
    seen.take()
    await wire.close()
    await touch(client, "changed")
    await client.delete(CONFIG_MAPS, "vanished", namespace=NS)
    await client.delete(CONFIG_MAPS, "again", namespace=NS)
    await make(client, "again")
    await make(client, "new")
    for number in range(5):
        await touch(client, "changed", str(number))
    await wire.open()
    await eventually(lambda: len(seen.events) == 5)
    told = seen.take()
    assert sorted(told) == [
        ("ADDED", "again"),
        ("ADDED", "new"),
        ("DELETED", "again"),
        ("DELETED", "vanished"),
        ("MODIFIED", "changed"),
    ]
    assert told.index(("DELETED", "again")) < told.index(("ADDED", "again"))
    assert {name for _, name in informer.objects} == {"kept", "changed", "again", "new"}


async def test_a_watch_that_falls_behind_while_it_is_open_lists_again(client, wired, wire, start, eventually):
    await make(client, "a")
    informer = Informer(wired, CONFIG_MAPS)
    start(informer.run())
    await informer.synced.wait()
    with capture_logs() as logs:
        wire.hang()
        for number in range(20):
            # More than the buffers on the way can hold.
            data = {"data": {"k": str(number), "large": "x" * 1_000_000}}
            await client.patch(CONFIG_MAPS, "a", data, namespace=NS)
        wire.flow()
        await eventually(lambda: (informer.objects[NS, "a"].get("data") or {}).get("k") == "19")
    assert 410 in [entry.get("status") for entry in logs]


async def test_a_quiet_collection_stays_young_by_bookmarks(client, wired, wire, start, seen, eventually):
    informer = Informer(wired, PODS, on_event=seen)
    start(informer.run())
    await informer.synced.wait()
    first = informer._version
    for name in "abcdefgh":
        await make(client, name)
    await eventually(lambda: int(informer._version) >= int(first) + 8)
    assert seen.events == []


async def test_it_survives_a_server_that_is_killed_and_started_again(process, start, seen, eventually):
    async with Client.from_kubeconfig(process.kubeconfig) as client:
        await make(client, "a")
        await make(client, "b")
        informer = Informer(client, CONFIG_MAPS, on_event=seen)
        start(informer.run())
        await informer.synced.wait()
        await touch(client, "a")
        await eventually(lambda: len(seen.events) == 3)
        seen.take()
        await process.kill()
        await process.start()
        assert (await client.get(CONFIG_MAPS, "a", namespace=NS))["data"] == {"k": "1"}
        await client.delete(CONFIG_MAPS, "b", namespace=NS)
        await make(client, "c")
        await eventually(lambda: len(seen.events) == 2)
        assert seen.take() == [("DELETED", "b"), ("ADDED", "c")]


async def test_it_waits_for_a_server_that_is_not_there_yet(client, wired, wire, start, seen):
    await wire.close()
    informer = Informer(wired, CONFIG_MAPS, on_event=seen)
    start(informer.run())
    await make(client, "a")
    assert not informer.synced.is_set()
    await wire.open()
    async with asyncio.timeout(5):
        await informer.synced.wait()
    assert seen.take() == [("ADDED", "a")]


async def test_what_a_handler_raises_ends_the_informer(client, start):
    def fail(kind, item):
        raise LookupError(kind)

    await make(client, "a")
    task = start(Informer(client, CONFIG_MAPS, on_event=fail).run())
    with pytest.raises(LookupError):
        await asyncio.wait_for(task, 5)


async def test_events_of_one_object_come_in_order(client, start, eventually):
    values = []
    informer = Informer(
        client, CONFIG_MAPS, on_event=lambda kind, item: values.append((item.get("data") or {}).get("k"))
    )
    start(informer.run())
    await informer.synced.wait()
    await make(client, "a")
    for number in range(20):
        await touch(client, "a", str(number))
        await asyncio.sleep(0)
    await eventually(lambda: values[-1:] == ["19"])
    numbers = [int(value) for value in values if value is not None]
    assert numbers == sorted(numbers)


async def test_of_a_large_collection_no_object_is_kept_and_every_change_told(client, start, seen, eventually):
    await make(client, "a")
    informer = Informer(client, CONFIG_MAPS, namespace=NS, on_event=seen, keep=lambda _: b"")
    start(informer.run())
    await informer.synced.wait()
    await touch(client, "a")
    await eventually(lambda: len(seen.events) == 2)
    assert informer.objects == {}
    await client.delete(CONFIG_MAPS, "a", namespace=NS)
    await eventually(lambda: len(seen.events) == 3)
    assert seen.take() == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_of_what_was_lost_unseen_comes_what_was_kept(client, seen):
    lost = []
    informer = Informer(
        client, CONFIG_MAPS, namespace=NS, on_event=seen, on_lost=lost.append,
        keep=lambda item: item["metadata"]["name"].encode(),
    )  # fmt: skip

    def item(name, uid, version):
        return {"metadata": {"namespace": NS, "name": name, "uid": uid, "resourceVersion": version}}

    def listed(*items):
        there = set()
        for change in informer._listed(items, there):
            informer._apply(*change)
        for key, known in [(k, informer._find(k)) for k in informer._keys() if k not in there]:
            informer._apply("DELETED", key, known)

    listed(item("a", "1", "1"), item("b", "2", "1"))
    listed(item("a", "1", "1"), item("b", "2", "1"))
    assert seen.take() == [("ADDED", "a"), ("ADDED", "b")]
    listed(item("a", "1", "2"), item("b", "3", "1"))
    assert seen.take() == [("MODIFIED", "a"), ("ADDED", "b")]
    assert lost == [b"b"]
    listed()
    assert sorted(lost) == [b"a", b"b", b"b"]


async def test_of_what_is_not_to_be_kept_any_more_nothing_stays(client, start, seen, eventually):
    await make(client, "a")
    kept = iter([b"what there is to keep"])
    informer = Informer(client, CONFIG_MAPS, namespace=NS, on_event=seen, keep=lambda _: next(kept, None))
    start(informer.run())
    await informer.synced.wait()
    assert list(informer._keys())
    await touch(client, "a")
    await eventually(lambda: len(seen.events) == 2)
    assert not list(informer._keys())
    assert seen.take() == [("ADDED", "a"), ("MODIFIED", "a")]


async def test_of_what_is_not_to_be_kept_every_sight_is_news(client, start, seen, eventually):
    await make(client, "a")
    informer = Informer(client, CONFIG_MAPS, namespace=NS, on_event=seen, keep=lambda _: None)
    start(informer.run())
    await informer.synced.wait()
    await touch(client, "a")
    await eventually(lambda: len(seen.events) == 2)
    assert seen.take() == [("ADDED", "a"), ("ADDED", "a")]


class Small(TypedDict, total=False):
    metadata: dict[str, Any]
    data: dict[str, str]


async def test_with_a_shape_only_its_fields_are_decoded_and_what_does_not_fit_in_full(
    client, start, seen, eventually
):
    items = []
    await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "immutable": False}, namespace=NS)
    informer = Informer(
        client, CONFIG_MAPS, namespace=NS, on_event=lambda kind, item: items.append(item), shape=Small
    )
    start(informer.run())
    await informer.synced.wait()
    await touch(client, "a")
    await eventually(lambda: len(items) == 2)
    assert all(set(item) <= {"apiVersion", "kind", "metadata", "data"} for item in items)
    odd = msgspec.Raw(b'{"metadata": {"name": "b"}, "data": 3, "immutable": true}')
    assert decoder(Small)(odd) == {"metadata": {"name": "b"}, "data": 3, "immutable": True}


async def test_a_slow_reader_is_not_overrun_by_a_long_list(client, start, seen, eventually, monkeypatch):
    monkeypatch.setattr("memopod.kube.client._PAGE", 2)
    for name in "abcde":
        await make(client, name)
    ready = asyncio.Event()
    informer = Informer(client, CONFIG_MAPS, namespace=NS, on_event=seen, pace=ready.wait)
    start(informer.run())
    await eventually(lambda: len(seen.events) == 2)
    assert not informer.synced.is_set()
    ready.set()
    await informer.synced.wait()
    assert [name for _, name in seen.take()] == list("abcde")
