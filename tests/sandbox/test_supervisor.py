import asyncio
import os
import signal

import pytest

from memopod.sandbox.certificates import prepare_state
from memopod.sandbox.errors import SandboxError
from memopod.sandbox.ports import free_ports
from memopod.sandbox.services import Layout, Ports, Service, ensure_seal_key, stages, webhook_configuration
from memopod.sandbox.supervisor import _Keeper, run_sandbox

LIMIT = 20


def keeper(tmp_path, script, **service):
    command = Service("thing", ("sh", "-c", script), "http://127.0.0.1:1/", **service)
    return _Keeper(command, tmp_path / "thing.log", lambda: None)


async def until(condition):
    async with asyncio.timeout(LIMIT):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


async def test_a_service_that_dies_is_started_again(tmp_path):
    starts = tmp_path / "starts"
    thing = keeper(tmp_path, f"echo x >> {starts}; exec sleep 1000")
    thing.start()
    await until(starts.exists)
    first = thing.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(starts.read_text().split()) == 2)
    assert thing.pid != first
    await asyncio.wait_for(thing.stop(), LIMIT)
    with pytest.raises(ProcessLookupError):
        os.kill(thing.pid, 0)


async def test_a_service_that_does_not_stay_alive_is_given_up_with_the_end_of_its_log(tmp_path):
    thing = keeper(tmp_path, "echo the port is in use >&2; exit 1")
    thing.start()

    def given_up():
        try:
            thing.check()
        except SandboxError as error:
            return "thing ended 5 times" in str(error) and "the port is in use" in str(error)
        return False

    await until(given_up)
    await asyncio.wait_for(thing.stop(), LIMIT)


async def test_a_service_is_stopped_while_it_waits_to_be_started_again(tmp_path):
    thing = keeper(tmp_path, "exit 1")
    thing.start()
    await until(lambda: thing.deaths >= 3)
    await asyncio.wait_for(thing.stop(), LIMIT)


async def test_a_service_gets_its_grace_to_end(tmp_path):
    done, up = tmp_path / "done", tmp_path / "up"
    script = f"trap 'sleep 0.3; touch {done}; exit 0' TERM; touch {up}; while :; do sleep 0.05; done"
    thing = keeper(tmp_path, script, grace=LIMIT)
    thing.start()
    await until(up.exists)
    await asyncio.wait_for(thing.stop(), LIMIT)
    assert done.exists()


async def test_a_folder_that_cannot_be_used_is_an_error_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SandboxError, match="cannot be written"):
        await run_sandbox(tmp_path / "file" / "state", asyncio.Event(), on_progress=print, on_ready=print)


async def test_a_sandbox_that_is_stopped_while_it_starts_leaves_nothing(tmp_path):
    stop = asyncio.Event()
    started = []

    def progress(name):
        started.append(name)
        stop.set()

    await asyncio.wait_for(
        run_sandbox(tmp_path / "state", stop, on_progress=progress, on_ready=started.append), LIMIT
    )
    assert started == ["api-server"]
    assert not (tmp_path / "state" / "sandbox.json").exists()


def test_all_services_listen_on_ports_of_their_own(tmp_path):
    ports = Ports.choose()
    numbers = [getattr(ports, name) for name in Ports.__dataclass_fields__]
    assert len(set(numbers)) == len(numbers)


def test_services_stop_in_an_order_that_loses_nothing(tmp_path):
    order = [[s.name for s in stage] for stage in reversed(stages(Layout.of_machine(tmp_path)))]
    position = {name: index for index, stage in enumerate(order) for name in stage}
    assert position["metadata-writer"] < position["metadata-store"]
    assert position["cache-server"] < position["metadata-store"]
    assert position["envoy"] < position["api-server"]
    assert position["kubelet"] < position["api-server"]
    assert len(position) == 7


def test_the_seal_key_is_made_once_and_readable_by_its_owner_only(tmp_path):
    ensure_seal_key(tmp_path)
    key = (tmp_path / "seal.key").read_bytes()
    ensure_seal_key(tmp_path)
    assert (tmp_path / "seal.key").read_bytes() == key
    assert len(key) == 32
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600


def test_each_opt_in_label_has_a_webhook_that_cannot_refuse_a_pod(tmp_path):
    files = prepare_state(tmp_path, 1)
    webhooks = webhook_configuration(8443, files.ca_bundle)["webhooks"]
    labels = [webhook["objectSelector"]["matchLabels"] for webhook in webhooks]
    assert labels == [{"memopod.io/cache": "true"}, {"pipelines.kubeflow.org/cache_enabled": "true"}]
    for webhook in webhooks:
        assert (webhook["failurePolicy"], webhook["timeoutSeconds"], webhook["sideEffects"]) == (
            "Ignore",
            5,
            "None",
        )
        assert webhook["clientConfig"]["caBundle"] == files.ca_bundle


def test_free_ports_are_different_and_below_the_ephemeral_ones():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20000 <= port < 32000 for port in ports)
