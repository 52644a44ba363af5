"""The memory of checks: many who ask at once ask once, and what is gone is asked about again."""

import asyncio

import pytest
from obstore.store import MemoryStore

from cache_server.artifacts import Artifacts, ArtifactStoreUnavailable
from cache_server.checks import Checks
from memopod.steps import Location

PLACE = Location("s3", "minio:9000", "pipelines", "run/data")


class Counted(Artifacts):
    """The real thing, which counts the questions; `hold` keeps their answers back."""

    asked = 0
    hold = None

    async def describe(self, location):
        self.asked += 1
        if self.hold:
            await self.hold.wait()
        return await super().describe(location)


@pytest.fixture
async def store():
    store = MemoryStore()
    await store.put_async(PLACE.key, b"123")
    return store


@pytest.fixture
def artifacts(store):
    return Counted({("minio:9000", "pipelines"): store})


async def test_many_who_ask_at_once_ask_once(artifacts):
    checks = Checks(60.0)
    states = await asyncio.gather(*(checks.describe(artifacts, "pipelines", PLACE) for _ in range(100)))
    assert {state.size for state in states} == {3}
    assert artifacts.asked == 1


async def test_without_a_memory_everybody_asks(artifacts):
    checks = Checks(0.0)
    await asyncio.gather(*(checks.describe(artifacts, "pipelines", PLACE) for _ in range(5)))
    assert artifacts.asked == 5


async def test_what_is_gone_is_asked_about_again(artifacts, store):
    checks = Checks(60.0)
    await store.delete_async(PLACE.key)
    assert await checks.describe(artifacts, "pipelines", PLACE) is None
    await store.put_async(PLACE.key, b"12345")
    assert (await checks.describe(artifacts, "pipelines", PLACE)).size == 5


async def test_a_store_that_cannot_be_asked_is_asked_again(artifacts):
    checks = Checks(60.0)
    unknown = Location("s3", "elsewhere", "pipelines", "run/data")
    for _ in range(2):
        with pytest.raises(ArtifactStoreUnavailable):
            await checks.describe(artifacts, "pipelines", unknown)
    assert artifacts.asked == 2


async def test_after_its_time_an_answer_is_asked_for_again(artifacts, store):
    checks = Checks(1e-9)
    await checks.describe(artifacts, "pipelines", PLACE)
    await store.delete_async(PLACE.key)
    assert await checks.describe(artifacts, "pipelines", PLACE) is None


async def test_one_who_gives_up_does_not_take_the_answer_from_the_others(artifacts):
    artifacts.hold = asyncio.Event()
    checks = Checks(60.0)
    impatient, patient = (
        asyncio.create_task(checks.describe(artifacts, "pipelines", PLACE)) for _ in range(2)
    )
    await asyncio.sleep(0)
    impatient.cancel()
    artifacts.hold.set()
    assert (await asyncio.wait_for(patient, 20)).size == 3
    with pytest.raises(asyncio.CancelledError):
        await impatient
