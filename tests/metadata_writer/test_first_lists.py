import asyncio

import pytest

from metadata_writer.first_lists import FirstLists

ONE = ("uid", "one")


def keys(number):
    return [("uid", str(n)) for n in range(number)]


@pytest.fixture
def ready():
    return []


@pytest.fixture
def lists(ready):
    return FirstLists(ready.append)


async def ends(wait, *, soon=0.05):
    try:
        async with asyncio.timeout(soon):
            await wait
    except TimeoutError:
        return False
    return True


def test_a_step_waits_until_both_its_pod_and_its_workflow_were_listed(lists):
    assert lists.hold_back(ONE, pod=True, workflow=False)
    assert lists.holds(ONE)
    assert not lists.hold_back(ONE, pod=True, workflow=True)
    assert not lists.holds(ONE)
    assert lists.hold_back(ONE, pod=False, workflow=True)


def test_after_both_lists_no_step_waits(lists):
    lists.pods_listed.set()
    lists.workflows_listed.set()
    assert not lists.hold_back(ONE, pod=False, workflow=False)


async def test_what_a_list_did_not_bring_is_not_waited_for_after_it(lists, ready):
    lists.hold_back(("w", "without a Pod"), pod=False, workflow=True)
    lists.hold_back(("w", "without a Workflow"), pod=True, workflow=False)
    running = asyncio.create_task(lists.run(), name="lists")
    lists.pods_listed.set()
    assert not await ends(asyncio.shield(running))
    assert ready == [("w", "without a Pod")]
    lists.workflows_listed.set()
    await running
    assert ready == [("w", "without a Pod"), ("w", "without a Workflow")]


async def test_workflows_that_cannot_be_listed_keep_no_pod_waiting_for_ever(ready, eventually):
    lists = FirstLists(ready.append, patience=0.01)
    lists.hold_back(ONE, pod=True, workflow=False)
    running = asyncio.create_task(lists.run(), name="lists")
    await eventually(lambda: ready == [ONE])
    assert not lists.hold_back(ONE, pod=True, workflow=False)
    assert lists.hold_back(ONE, pod=False, workflow=True)  # its Pod may still be listed
    running.cancel()


@pytest.mark.parametrize("ahead", ["pods", "workflows"])
async def test_a_list_that_is_ahead_waits_for_the_other(lists, ahead):
    first, second = lists.pace_pods, lists.pace_workflows
    if ahead == "workflows":
        first, second = second, first
    for key in keys(200):
        lists.hold_back(key, pod=ahead == "pods", workflow=ahead == "workflows")
    assert not await ends(first())
    assert await ends(second())
    waiting = asyncio.create_task(first(), name="pace")
    lists.hold_back(keys(200)[0], pod=True, workflow=True)
    async with asyncio.timeout(20):
        await waiting


async def test_lists_that_come_in_different_orders_do_not_wait_for_each_other(lists):
    for number, key in enumerate(keys(1200)):
        lists.hold_back(key, pod=number % 2 == 0, workflow=number % 2 == 1)
    assert await ends(lists.pace_pods())
    assert await ends(lists.pace_workflows())


async def test_results_wait_for_their_steps(lists):
    for key in keys(200):
        lists.result_alone(key)
    assert not await ends(lists.pace_results())
    lists.hold_back(keys(200)[0], pod=True, workflow=False)
    assert await ends(lists.pace_results())
