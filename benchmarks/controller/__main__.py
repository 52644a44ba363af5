"""`python -m benchmarks.controller`: the controller beside a bare loop, on a real kube-apiserver and etcd."""

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.controller.load import Load, unique
from memopod.kube import MUTATING_WEBHOOKS, Client
from memopod.sandbox.control_plane import add_namespace
from memopod.sandbox.processes import Process
from tests.real.argo import Argo, Step
from tests.real.cluster import Cluster, until
from tests.real.kubelet import Kubelet
from tests.real.plane import start, wait_ready

KNOWN = [f"known-{n}" for n in range(20)]
"""Steps whose results are known: hits are of twenty different keys."""
SETTLE_SECONDS = 0.5
"""The default settling time, which is no part of the figures."""
CHAIN = 20
SCENARIOS = (
    ("lift", 20, 200), ("lift", 50, 400), ("hit", 20, 200), ("hit", 50, 400),
    ("lift", None, 1000), ("hit", None, 1000),
)  # fmt: skip
"""What is written, Pods a second (None: all at once), Pods."""


async def measure(load, what, rate, count):
    """Seconds of each Pod from its creation to what was written, and of the whole."""
    messages = unique(count) if what == "lift" else KNOWN
    target = "lifted" if what == "lift" else "succeeded"
    bodies = await load.bodies(count, messages)
    watch = load.watch()
    watching = asyncio.create_task(watch.run(), name="load")
    try:
        await watch.synced.wait()
        whole = await load.run(bodies, rate=rate, until=target)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    each = [getattr(times, target) - times.created for times in load.pods.values()]
    await load.clear()
    return each, whole


@asynccontextmanager
async def bare_loop(kubeconfig, namespace, what):
    with tempfile.TemporaryFile() as log:
        process = await Process.start(
            (sys.executable, "-m", "benchmarks.controller.bare", str(kubeconfig), namespace, what), log=log
        )

        def ready():
            log.seek(0)
            text = log.read()
            assert process.running, text
            return b"ready" in text

        await until(ready, "the bare loop watches")
        try:
            yield
        finally:
            await process.stop(0)


async def written(session, plane, token):
    """Writes that the API server has served so far: (verb, resource) -> number."""
    url = f"https://127.0.0.1:{plane.port}/metrics"
    async with session.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
        text = await answer.text()
    counts = {}
    for line in re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.M):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line[0]))
        if labels["verb"] in ("POST", "PATCH", "PUT", "DELETE") and labels["code"].startswith("2"):
            key = labels["verb"], "/".join(filter(None, (labels["resource"], labels["subresource"])))
            counts[key] = counts.get(key, 0) + float(line[1])
    return counts


async def writes_each(read, work, count):
    before = await read()
    result = await work
    after = await read()
    changed = {key: (after[key] - before.get(key, 0)) / count for key in after}
    # What this benchmark itself creates and deletes, and the Lease, are no part of a decision.
    others = (("POST", "pods"), ("POST", "workflows"), ("PUT", "leases"))
    own = {
        f"{verb} {resource}": round(number, 3)
        for (verb, resource), number in changed.items()
        if number > 0 and (verb, resource) not in others and verb != "DELETE"
    }
    return result, own


async def learn(cluster, admin, server):
    """Run each known step once, so that there is an entry."""
    argo_client = await cluster.client("argo", "argo")
    async with AsyncExitStack() as playing:
        argo = await playing.enter_async_context(Argo.playing(argo_client, cluster.pipelines))
        await playing.enter_async_context(Kubelet.playing(admin, cluster.pipelines))
        runs = [await argo.submit(Step(message=message)) for message in KNOWN]
        for run in runs:
            await run.end(60)
        await until(lambda: len(server.lines("recorded")) >= len(KNOWN), "all are recorded")


async def whole_way(cluster, admin):
    """A chain of steps, executed by Pods that do nothing, then reused: seconds of each workflow."""
    argo_client = await cluster.client("argo", "argo")
    chain = [
        Step(name=f"s{n}", message=f"chain-{n}", after=(f"s{n - 1}",) if n else ()) for n in range(CHAIN)
    ]
    seconds = []
    async with AsyncExitStack() as playing:
        argo = await playing.enter_async_context(Argo.playing(argo_client, cluster.pipelines, requeue=0.1))
        kubelet = await playing.enter_async_context(Kubelet.playing(admin, cluster.pipelines))
        for expected in (CHAIN, CHAIN):
            begun = time.monotonic()
            run = await argo.submit(*chain)
            assert await run.end(120) == "Succeeded"
            seconds.append(time.monotonic() - begun)
            assert len(kubelet.ran) == expected, kubelet.ran
            # The recorder follows on its own.
            await asyncio.sleep(2)
    return {"executed": seconds[0], "reused": seconds[1]}


def percentiles(values):
    cut = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cut[49] * 1000, "p99": cut[98] * 1000}


async def run(scenarios, progress, whole):
    task = progress.add_task("", total=2 * len(scenarios) + 1)
    results = {"scenarios": [], "writes": {}}
    with tempfile.TemporaryDirectory(prefix="memopod-bench-") as name:
        folder = Path(name)
        plane = wait_ready(start(os.getpid(), folder / "plane.log"), folder / "plane.log")
        token = next(t for t, u in json.loads((plane.folder / "tokens.json").read_text()).items()
                     if "system:masters" in u["groups"])  # fmt: skip
        async with AsyncExitStack() as stack:
            admin = await stack.enter_async_context(
                Client.from_kubeconfig(str(plane.folder / "kubeconfig"), timeout=60.0)
            )
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))
            )
            cluster = await Cluster.make(plane.folder, plane.port, admin, folder)
            stack.push_async_callback(cluster.close)
            secret = (folder / "seal.key").read_bytes()
            load = Load.of(admin, cluster.pipelines, secret)
            # The bare loop works in a namespace that memopod does not watch, in turn with memopod.
            await add_namespace(admin, f"bare-{cluster.name}")
            bare_load = Load.of(admin, f"bare-{cluster.name}", secret)
            kubeconfig = await cluster.kubeconfig("cache-server")
            server = await cluster.cache_server("--hold-timeout", 120, "--log-level", "info")
            await learn(cluster, admin, server)
            await load.clear()
            # Pods come held, as its webhook would answer: the figures are of the controller alone.
            await admin.delete(MUTATING_WEBHOOKS, f"memopod-{cluster.name}")
            for what, rate, count in scenarios:
                progress.update(task, description=f"bare loop: {what}, {rate or 'all at once'}", advance=1)
                async with bare_loop(kubeconfig, bare_load.namespace, what):
                    floor, floor_whole = await measure(bare_load, what, rate, count)
                progress.update(task, description=f"memopod: {what}, {rate or 'all at once'}", advance=1)
                # Events and uses of the scenario before are written a little later than its decisions.
                await asyncio.sleep(1)
                (each, whole_time), writes = await writes_each(
                    lambda: written(session, plane, token), measure(load, what, rate, count), count
                )
                settle = SETTLE_SECONDS if what == "hit" else 0.0
                results["scenarios"].append({
                    "what": what, "rate": rate, "pods": count,
                    "bare": {**percentiles(floor), "seconds": floor_whole},
                    "memopod": {
                        **percentiles([value - settle for value in each]), "seconds": whole_time - settle,
                    },
                    "writes": writes,
                })  # fmt: skip
            if whole:
                progress.update(task, description="the whole way", advance=1)
                await cluster.register_webhook(server.port)
                results["whole_way"] = await whole_way(cluster, admin)
            results["cpu"] = await server.metric("process_cpu_seconds_total")
    return results


def show(results, console):
    table = Table(title="From a Pod created to what was written (settling time taken off)")
    for column in (
        "",
        "Pods/s",
        "bare p50",
        "memopod p50",
        "ratio",
        "bare p99",
        "memopod p99",
        "ratio",
        "whole",
    ):
        table.add_column(column, justify="right")
    for s in results["scenarios"]:
        bare, own = s["bare"], s["memopod"]
        table.add_row(
            "gate lifted" if s["what"] == "lift" else "Succeeded",
            str(s["rate"] or f"{s['pods']} at once"),
            f"{bare['p50']:.0f} ms", f"{own['p50']:.0f} ms", f"{own['p50'] / bare['p50']:.2f}",
            f"{bare['p99']:.0f} ms", f"{own['p99']:.0f} ms", f"{own['p99'] / bare['p99']:.2f}",
            f"{own['seconds']:.2f} / {bare['seconds']:.2f} s = {own['seconds'] / bare['seconds']:.2f}",
        )  # fmt: skip
    if results["scenarios"]:
        console.print(table)
    for s in results["scenarios"]:
        console.print(f"writes of a {s['what']} at {s['rate'] or 'once'}: {s['writes']}")
    if "whole_way" in results:
        way = results["whole_way"]
        console.print(
            f"{CHAIN} steps one after the other: executed by Pods that do nothing {way['executed']:.2f} s, "
            f"reused {way['reused']:.2f} s"
        )


def machine():
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores, {model.group(1) if model else '?'}, Linux {platform.release()}"


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--only", choices=("lift", "hit", "way"), help="one part of it")
    options = parser.parse_args()
    scenarios = [s for s in SCENARIOS if options.only in (None, s[0])]
    whole = options.only in (None, "way")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        results = asyncio.run(run(scenarios, progress, whole))
    if options.json:
        print(json.dumps({"machine": machine(), **results}))
        return
    console = Console(width=140)
    console.print(machine())
    show(results, console)


if __name__ == "__main__":
    main()
