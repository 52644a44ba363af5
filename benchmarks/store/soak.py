"""A million calls (`make soak-store`, ARGS="--calls 10000" for less): flat memory, and no worker is lost."""

import argparse
import asyncio
import os
import sys
import tempfile
import time

import grpc
from rich.console import Console
from rich.progress import Progress

from benchmarks.store import calls, load, servers

CLIENTS = 8
console = Console()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--growth", type=float, default=1.15, help="how much the memory may grow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-store-") as folder:
        url = f"sqlite:///{folder}/soak.db"
        asked = calls.asked(calls.fill(calls.open_core(url, first=True)))
        kinds = [asked["GetContextByTypeAndName"]] * 19 + [asked["PutExecution"]]
        with servers.store(url) as (port, pid):
            return asyncio.run(soak(port, pid, kinds, options))


async def soak(port, pid, kinds, options):
    tenth, workers = options.calls // 10, servers.children(pid)
    memory, started = [], time.monotonic()
    with Progress(console=console) as progress:
        bar = progress.add_task("calls", total=options.calls)
        for _ in range(10):
            share = tenth // CLIENTS
            await asyncio.gather(
                *(client(port, kinds, share, lambda: progress.advance(bar)) for _ in range(CLIENTS))
            )
            memory.append(servers.memory_of(pid))
    rate = options.calls / (time.monotonic() - started)
    console.print(
        f"{options.calls:,} calls, {rate:,.0f}/s; MB after each tenth: {[round(m) for m in memory]}"
    )
    if servers.children(pid) != workers:
        console.print("a worker was replaced", style="red")
        return 1
    # The first tenth fills caches.
    if memory[-1] > options.growth * memory[1]:
        console.print("memory grew", style="red")
        return 1
    return 0


async def client(port, kinds, count, done):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=load.OPTIONS) as channel:
        for number in range(count):
            kind = kinds[number % len(kinds)]
            call = channel.unary_unary(
                f"/{load.SERVICE}/{kind.rpc}", request_serializer=None, response_deserializer=None
            )
            await call(kind.request(), timeout=60)
            done()


if __name__ == "__main__":
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # descriptor 2 is the core's
    sys.exit(main())
