"""What a replica that stands by asks the store."""

from types import SimpleNamespace

import grpc
import pytest

from memopod.mlmd import StoreError
from metadata_writer import standby
from metadata_writer.standby import StandBy


class Settled:
    def __init__(self):
        self.first_lists = SimpleNamespace(over=True)
        self.keys = []

    def settle(self, key, _version):
        self.keys.append(key)


async def observe(key):
    record = SimpleNamespace(name=key[1], state=SimpleNamespace(finished=True))
    return SimpleNamespace(record=record, reported=True, closed=True, pod=None, version=1)


@pytest.fixture
def settled():
    return Settled()


@pytest.fixture
def replica(settled):
    return StandBy(
        SimpleNamespace(observe=observe), settled, lookup=None, marking=None, batch=10,
        leads=lambda _key: False, led=lambda _key: None,
    )  # fmt: skip


async def test_a_step_that_cannot_be_asked_about_stops_no_other(replica, settled, monkeypatch):
    async def recorded(_lookup, records):
        if any(record.name == "poison" for record in records):
            raise TypeError("no text")
        return [object() for _ in records]

    monkeypatch.setattr(standby, "recorded", recorded)
    await replica.check([("w", "a"), ("w", "poison"), ("w", "z")])
    assert settled.keys == [("w", "a"), ("w", "z")]


async def test_a_store_that_does_not_answer_is_told(replica, monkeypatch):
    async def recorded(_lookup, _records):
        raise StoreError("GetContexts", grpc.StatusCode.UNAVAILABLE, "away")

    monkeypatch.setattr(standby, "recorded", recorded)
    with pytest.raises(StoreError):
        await replica.check([("w", "a"), ("w", "b")])
