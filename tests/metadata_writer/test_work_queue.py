import asyncio

import pytest

from metadata_writer.work_queue import WorkQueue


@pytest.fixture
async def queue():
    queue = WorkQueue()
    yield queue
    queue.close()


async def test_a_key_waits_once_however_often_it_is_added(queue):
    for key in ("a", "b", "a"):
        queue.add(key)
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == ["a", "b"]


async def test_a_key_that_changes_while_it_is_worked_on_has_another_turn_afterwards(queue):
    queue.add("a")
    key = await queue.get()
    queue.add("a")
    other = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not other.done()
    queue.done(key)
    assert await asyncio.wait_for(other, 1) == "a"


async def test_join_waits_for_what_waits_and_for_what_is_worked_on(queue):
    queue.add("a")
    joined = asyncio.create_task(queue.join())
    key = await queue.get()
    await asyncio.sleep(0)
    assert not joined.done()
    queue.done(key)
    await asyncio.wait_for(joined, 1)


async def test_a_key_that_is_put_off_comes_back_by_itself(queue):
    queue.add_later("a", 0.01)
    assert len(queue) == 0
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_an_event_brings_a_key_that_is_put_off_back_at_once_and_only_once(queue):
    queue.add("a")
    key = await queue.get()
    queue.add_later("a", 0.01)
    queue.done(key)
    queue.add("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    queue.done("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)


async def test_a_key_that_waits_is_not_put_off(queue):
    queue.add("a")
    queue.add_later("a", 60)
    assert await asyncio.wait_for(queue.get(), 1) == "a"
