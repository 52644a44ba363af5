import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from memopod.service import Health


@pytest.fixture
def checks():
    return {"store": True, "informer": True}


@pytest.fixture
async def address(checks):
    registry = CollectorRegistry()
    Counter("decisions", "Decisions.", registry=registry).inc(3)
    health = Health({name: lambda name=name: checks[name] for name in checks}, registry=registry)
    port = await health.start("127.0.0.1", 0)
    yield f"http://127.0.0.1:{port}"
    await health.stop()


async def get(url):
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_a_process_whose_checks_hold_is_alive_and_ready(address):
    assert await get(f"{address}/healthz") == (200, "ok\n")
    assert await get(f"{address}/readyz") == (200, "ok\n")


async def test_checks_that_do_not_hold_are_named_and_the_process_is_still_alive(address, checks):
    checks["store"] = False
    assert await get(f"{address}/readyz") == (503, "not ready: store\n")
    assert await get(f"{address}/healthz") == (200, "ok\n")
    checks["store"] = True
    assert await get(f"{address}/readyz") == (200, "ok\n")


async def test_metrics_are_those_of_the_registry(address):
    status, text = await get(f"{address}/metrics")
    assert status == 200
    assert "decisions_total 3.0" in text


async def test_a_port_in_use_is_an_oserror(address):
    with pytest.raises(OSError, match="address already in use"):
        await Health({}).start("127.0.0.1", int(address.rpartition(":")[2]))


async def test_stopped_twice_or_never_started_is_no_error():
    health = Health({})
    await health.stop()
    await health.start("127.0.0.1", 0)
    await health.stop()
    await health.stop()
