"""Everything goes wrong at once, from a seed: `python -m tests.chaos.conduct --pods 10000 --workflows 500`.

Writers are killed (SIGKILL) at random moments, two at times; the store answers 5 % of the calls with an
error, before or after it carried them out, and is killed now and then; watches are cut, versions
forgotten, events repeated and swapped. In the end the graph in the store must be the one that the
generator knows.
"""

import argparse
import asyncio
import random
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from memopod.mlmd import StoreClient
from tests.chaos.recorded import recorded
from tests.chaos.store_proxy import StoreProxy
from tests.chaos.stub_api import Disorder, StubApi
from tests.chaos.truth import World


@dataclass(frozen=True)
class Plan:
    """How much happens, and how often something goes wrong (seconds between two)."""

    seed: int
    pods: int
    workflows: int
    changes_a_second: float
    kill_every: float
    cut_every: float
    restart_every: float
    settle_seconds: float = 120.0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Store:
    """A metadata store as a child process that can be killed and started again; over SQLite without `url`."""

    def __init__(self, folder, url=None):
        self.port, self.folder, self.process = free_port(), folder, None
        self.url = url or f"sqlite:///{folder / 'metadata.db'}"
        self.address = f"127.0.0.1:{self.port}"

    async def start(self):
        with (self.folder / "store.log").open("a") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 (takes a millisecond)
                [
                    sys.executable, "-m", "metadata_store", f"--grpc_port={self.port}",
                    "--database", self.url,
                    "--health-port", str(free_port()),
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        async with grpc.aio.insecure_channel(self.address) as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)

    def kill(self):
        self.process.kill()
        self.process.wait(20)


class Writers:
    """Writer processes that come and go."""

    def __init__(self, folder, kubeconfig, address, *, health_port=0):
        self._folder, self._alive, self.started = folder, [], 0
        self._command = [
            sys.executable, "-m", "metadata_writer", "--kubeconfig", str(kubeconfig), "--store", address,
            "--store-timeout", "2", "--health-host", "127.0.0.1", "--health-port", str(health_port),
            "--leader-elect=off",
        ]  # fmt: skip

    def start(self):
        self.started += 1
        with (self._folder / "writer.log").open("a") as log:
            self._alive.append(subprocess.Popen(self._command, stdout=log, stderr=log))

    def ended(self):
        """Writers that ended by themselves: there should be none."""
        return [writer.returncode for writer in self._alive if writer.poll() is not None]

    def kill(self, some=1):
        for writer in self._alive[:some]:
            writer.kill()
            writer.wait(20)
        del self._alive[:some]

    def kill_all(self):
        self.kill(len(self._alive))

    @property
    def count(self):
        return len(self._alive)

    @property
    def first_pid(self):
        return self._alive[0].pid


async def conduct(plan, folder, *, tell=lambda _: None):
    """Play a world while everything fails; the differences that are left, and what went on."""
    chance = random.Random(plan.seed)
    api = StubApi(seed=plan.seed, disorder=Disorder(repeat=0.05, swap=0.05))
    world = World(api, seed=plan.seed, pods=plan.pods, workflows=plan.workflows)
    store = Store(folder)
    await asyncio.gather(api.start(), store.start())
    proxy = StoreProxy(store.address, seed=plan.seed)
    await proxy.start()
    writers = Writers(folder, api.kubeconfig(folder / "kubeconfig"), proxy.address)
    over = asyncio.Event()
    killed = {"writers": 0, "stores": 0, "watches": 0}

    async def at_random(every, what):
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), chance.uniform(0.5, 1.5) * every)
            except TimeoutError:
                await what()

    async def replace_writer():
        assert writers.ended() == [], "a writer ended by itself"
        writers.kill()
        killed["writers"] += 1
        while writers.count < chance.choice([1, 1, 2]):
            writers.start()

    async def cut():
        killed["watches"] += 1
        api.cut()
        if chance.random() < 0.3:
            api.forget()

    async def restart_store():
        killed["stores"] += 1
        store.kill()
        await asyncio.sleep(chance.uniform(0, 1))
        await store.start()

    try:
        writers.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(at_random(plan.kill_every, replace_writer), name="kill writers")
            tasks.create_task(at_random(plan.cut_every, cut), name="cut watches")
            tasks.create_task(at_random(plan.restart_every, restart_store), name="kill the store")
            begun, changes = time.monotonic(), 0
            for _ in world.play():
                changes += 1
                if changes % 20 == 0:
                    await asyncio.sleep(max(0.0, begun + changes / plan.changes_a_second - time.monotonic()))
                if changes % 5000 == 0:
                    tell(f"{changes} changes, {world.made_pods} Pods, {killed}")
            over.set()
        if not writers.count:
            writers.start()
        tell(f"played: {changes} changes, {world.made_pods} Pods, {killed}; waiting for the rest")
        return await until_equal(store, world, plan.settle_seconds, tell), world, killed, proxy
    finally:
        writers.kill_all()
        await proxy.stop()
        await api.stop()
        store.kill()


async def until_equal(store, world, seconds, tell):
    """What the store has otherwise than it was made: nothing, or what is left after so many seconds."""
    deadline = time.monotonic() + seconds
    async with StoreClient(store.address, timeout=60) as client:
        while True:
            found = (await recorded(client)).differences(world.truth)
            if not found or time.monotonic() > deadline:
                return found
            tell(f"{len(found)} differences left")
            await asyncio.sleep(max(0.5, min(10.0, len(world.truth.executions) / 1000)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--workflows", type=int, default=500)
    parser.add_argument("--changes-a-second", type=float, default=500)
    parser.add_argument("--keep", type=Path, help="folder for logs and the database (kept)")
    args = parser.parse_args()
    plan = Plan(
        seed=args.seed, pods=args.pods, workflows=args.workflows, changes_a_second=args.changes_a_second,
        kill_every=4.0, cut_every=3.0, restart_every=30.0, settle_seconds=600.0,
    )  # fmt: skip
    print(f"seed {plan.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        found, world, killed, proxy = asyncio.run(
            conduct(plan, folder, tell=lambda text: print(text, flush=True))
        )
    truth = world.truth
    print(
        f"{world.made_pods} Pods of {plan.workflows} workflows in {time.monotonic() - begun:.0f} s: "
        f"{len(truth.executions)} executions, {len(truth.artifacts)} artifacts, {len(truth.edges)} edges; "
        f"killed {killed}; {proxy.faults} of {proxy.calls} calls went wrong"
    )
    for line in found[:40]:
        print(line)
    print(
        "the graph is the one that was made" if not found else f"{len(found)} DIFFERENCES (seed {plan.seed})"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
