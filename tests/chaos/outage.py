"""The store is away for long while Pods come and go: `python -m tests.chaos.outage --away 600 --rate 20`.

Pods end, are deleted, and so are workflows, while nobody can record them. In the end the graph must be the
one that the generator knows, and the writer's memory must have stayed within its bounds.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.conduct import Store, Writers, free_port, until_equal
from tests.chaos.stub_api import StubApi
from tests.chaos.truth import World

_CHANGES_KEPT = 20_000
"""Of the stub's history: an API server forgets too."""


@dataclass(frozen=True)
class Plan:
    """Seconds; `rate` are Pods a second, before the store goes and while it is away."""

    seed: int
    away: float
    rate: float
    before: float = 20.0
    settle: float = 300.0


@dataclass
class Seen:
    """What was measured: MiB of the writer's process, and what it kept and had queued at the end."""

    resident_before: float = 0.0
    resident_most: float = 0.0
    kept_most: float = 0.0
    queue_most: int = 0
    pods_meanwhile: int = 0
    seconds_to_catch_up: float = 0.0


def resident(pid):
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("a process without VmRSS")


def status(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=20) as answer:
        return json.loads(answer.read())


async def outage(plan, folder, *, tell=lambda _: None):
    """Play a world around an outage; the differences that are left, the world, and what was measured."""
    api, store, seen = StubApi(seed=plan.seed), Store(folder), Seen()
    pods = round(plan.rate * (plan.before + plan.away))
    world = World(api, seed=plan.seed, pods=pods, workflows=max(4, pods // 20), delete_workflows=0.3)
    await asyncio.gather(api.start(), store.start())
    health = free_port()
    writers = Writers(folder, api.kubeconfig(folder / "kubeconfig"), store.address, health_port=health)
    writers.start()
    begun, gone_at, came_at, next_look = time.monotonic(), None, None, 0.0

    async def look():
        seen.resident_most = max(seen.resident_most, resident(writers.first_pid))
        said = await asyncio.to_thread(status, health)
        seen.kept_most = max(seen.kept_most, said["bytes_kept"] / 2**20)
        seen.queue_most = max(seen.queue_most, said["queue"])

    try:
        for _ in world.play():
            assert writers.ended() == [], "the writer ended by itself"
            now = time.monotonic()
            if gone_at is None and now - begun > plan.before:
                seen.resident_before = resident(writers.first_pid)
                store.kill()
                gone_at, seen.pods_meanwhile = now, -world.made_pods
                tell(f"the store is gone; {world.made_pods} Pods, {seen.resident_before:.0f} MiB")
            if came_at is None and gone_at is not None and now - gone_at > plan.away:
                seen.pods_meanwhile += world.made_pods
                await look()
                await store.start()
                came_at = time.monotonic()
                tell(f"the store is back: {seen}")
            if now > next_look and gone_at is not None:
                next_look = now + max(1.0, plan.away / 60)
                await look()
                api.trim(_CHANGES_KEPT)
            await asyncio.sleep(max(0.0, begun + world.made_pods / plan.rate - now))
        if came_at is None:  # the world ended a moment before
            seen.pods_meanwhile += world.made_pods
            await asyncio.sleep(max(0.0, gone_at + plan.away - time.monotonic()))
            await look()
            await store.start()
            came_at = time.monotonic()
        found = await until_equal(store, world, plan.settle, tell)
        seen.seconds_to_catch_up = time.monotonic() - came_at
        await look()
        return found, world, seen
    finally:
        writers.kill_all()
        await api.stop()
        store.kill()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--away", type=float, default=600, help="seconds")
    parser.add_argument("--rate", type=float, default=20, help="Pods a second")
    parser.add_argument("--keep", type=Path, help="folder for logs and the database (kept)")
    args = parser.parse_args()
    plan = Plan(seed=args.seed, away=args.away, rate=args.rate)
    print(f"seed {plan.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found, world, seen = asyncio.run(outage(plan, folder, tell=lambda text: print(text, flush=True)))
    print(f"{world.made_pods} Pods, {len(world.truth.executions)} executions; {seen}")
    for line in found[:40]:
        print(line)
    print("the graph is the one that was made" if not found else f"{len(found)} DIFFERENCES")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
