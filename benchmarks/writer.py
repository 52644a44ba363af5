"""The metadata writer against Kubeflow's way of working, over recorded Pods.

A stub of the Kubernetes API (its own process is this one) holds Pods that Argo 3.4 - 4.1 made, under new
names, and shows them as fast as they are read. Writer and store are processes of their own. What is
readable in the store's database counts, not what a writer says of itself.

    python -m benchmarks.writer throughput [--pods 6000] [--mariadb]
    python -m benchmarks.writer lag [--rate 50] [--seconds 60]
    python -m benchmarks.writer relist [--pods 50000]
    python -m benchmarks.writer memory [--pods 100000]
"""

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.store.servers import mariadb
from tests.chaos.conduct import Store, free_port
from tests.chaos.stub_api import StubApi

SAMPLES = Path(__file__).parent.parent / "tests" / "samples"
PLURALS = {"pod": "pods", "taskresult": "workflowtaskresults", "workflow-final": "workflows"}


class Recordings:
    """Workflows of the recordings with their Pods and results, to be copied under new names."""

    def __init__(self):
        self.sets = []
        for final in sorted(SAMPLES.glob("argo-*/*.workflow-final.json")):
            name = final.name.partition(".")[0]
            if "kfp-v2" in name or name in ("held", "offloaded", "resource", "initless-resource"):
                continue  # not recorded, or with objects of their own
            metadata = json.loads(final.read_text())["metadata"]
            files = [
                (k, p.read_text()) for k in PLURALS for p in sorted(final.parent.glob(f"{name}.*{k}.json"))
            ]
            pods = [body for kind, body in files if kind == "pod"]
            if pods:
                self.sets.append((metadata["name"], metadata["uid"], files, len(pods)))
        self.number = 0

    def next(self):
        """Objects of one workflow as (plural, object), and how many Pods are among them."""
        name, uid, files, pods = self.sets[self.number % len(self.sets)]
        self.number += 1
        new_name, new_uid = f"run-{self.number:07}", f"00000000-0000-4000-8000-{self.number:012}"
        objects = []
        for kind, recorded in files:
            body = msgspec.json.decode(recorded.replace(name, new_name).replace(uid, new_uid))
            body["metadata"]["namespace"] = "kubeflow"
            body["metadata"]["uid"] = f"{new_uid}-{len(objects)}" if kind != "workflow-final" else new_uid
            objects.append((PLURALS[kind], body))
        order = {"workflowtaskresults": 0, "pods": 1, "workflows": 2}
        return sorted(objects, key=lambda item: order[item[0]]), pods


class Writer:
    """A writer's process: ours, or the one that works as Kubeflow's does."""

    def __init__(self, folder, kubeconfig, store, *, ours=True):
        self.health = free_port()
        self.log = folder / "writer.log"
        command = [sys.executable, "-m", "benchmarks.one_by_one", str(kubeconfig), store.address]
        if ours:
            command = [
                sys.executable, "-m", "metadata_writer", "--kubeconfig", str(kubeconfig),
                "--store", store.address, "--health-host", "127.0.0.1", "--health-port", str(self.health),
                "--leader-elect=off", "--label-pods=on", "--log-level=warning",
            ]  # fmt: skip
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def status(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/status", timeout=10) as answer:
            return json.load(answer)

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    async def ready(self):
        while True:
            try:
                if await asyncio.to_thread(self.status):
                    break
            except OSError:
                await asyncio.sleep(0.05)

    def mebibytes(self, what="VmRSS"):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(what))

    def end(self):
        self.process.terminate()
        self.process.wait(30)


def cpu_seconds(process):
    """Of a process and its children."""
    seconds = 0
    for pid in [
        process.pid,
        *(int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()),
    ]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


class Database:
    """What is readable in the store's database, asked beside the store's own process."""

    def __init__(self, store):
        self.url = store.url

    def _ask(self, query):
        if self.url.startswith("sqlite"):
            path = self.url.removeprefix("sqlite:///")
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30) as db:
                return db.execute(query).fetchall()
        return asyncio.run(self._ask_server(query))

    async def _ask_server(self, query):
        engine = create_async_engine(self.url.replace("mysql://", "mysql+asyncmy://"))
        async with engine.connect() as connection:
            rows = (await connection.execute(text(query))).fetchall()
        await engine.dispose()
        return rows

    def finished(self):
        return self._ask("SELECT count(*) FROM Execution WHERE last_known_state <> 1")[0][0]

    def finished_after(self, row):
        return self._ask(f"SELECT id, external_id FROM Execution WHERE last_known_state > 1 AND id > {row}")


async def until(condition, seconds=280, every=0.1):
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        if time.monotonic() > end:
            raise TimeoutError("not done in time")
        await asyncio.sleep(every)


async def started(folder, url=None):
    api, store = StubApi(), Store(folder, url)
    await asyncio.gather(api.start(), store.start())
    return api, store, api.kubeconfig(folder / "kubeconfig")


async def throughput(args, folder):
    """Pods a second, ours and one by one, each into a store of its own."""
    if args.mariadb:
        with mariadb() as url:
            await _throughput(args, folder, url)
    else:
        await _throughput(args, folder, lambda _: None)


async def _throughput(args, folder, url):
    rates = {}
    for name, ours, pods in (("memopod", True, args.pods), ("one by one", False, max(200, args.pods // 20))):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        api, store, kubeconfig = await started(place, url(name.replace(" ", "_")))
        recordings, made, batch = Recordings(), 0, []
        while made < pods:
            objects, count = recordings.next()
            batch += objects
            made += count
        writer = Writer(place, kubeconfig, store, ours=ours)
        if ours:
            await writer.ready()
        else:
            await until(lambda w=writer: "ready" in w.log.read_text())
        database, begun = Database(store), time.monotonic()
        for number, (kind, body) in enumerate(batch):
            api.put(kind, body)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda d=database, n=made: d.finished() >= n)
        seconds = time.monotonic() - begun
        rates[name] = made / seconds
        print(
            f"{name:>11}: {made} Pods in {seconds:.1f} s = {made / seconds:.0f} Pods/s; the writer's CPU "
            f"{cpu_seconds(writer.process):.1f} s, memory {writer.mebibytes('VmHWM'):.0f} MiB; "
            f"{api.patches} patches, {api.gets} gets"
        )
        writer.end()
        await api.stop()
        store.kill()
    print(f"memopod / one by one: {rates['memopod'] / rates['one by one']:.1f}")


async def lag(args, folder):
    """Seconds from a Pod's event to its readable record."""
    api, store, kubeconfig = await started(folder)
    writer = Writer(folder, kubeconfig, store)
    await writer.ready()
    database, recordings, shown, lags = Database(store), Recordings(), {}, []
    over = asyncio.Event()

    async def watch():
        row = 0
        while not (over.is_set() and not shown):
            for row_id, external_id in await asyncio.to_thread(database.finished_after, row):
                row = max(row, row_id)
                if external_id in shown:
                    lags.append(time.monotonic() - shown.pop(external_id))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch(), name="watch the database")
    begun, made = time.monotonic(), 0
    while time.monotonic() - begun < args.seconds:
        objects, _ = recordings.next()
        for kind, body in objects:
            if kind == "pods":
                made += 1
                metadata = body["metadata"]
                node = metadata["annotations"]["workflows.argoproj.io/node-id"]
                shown[f"{metadata['ownerReferences'][0]['uid']}/{node}"] = time.monotonic()
            api.put(kind, body)
            await asyncio.sleep(max(0.0, begun + made / args.rate - time.monotonic()))
    over.set()
    await asyncio.wait_for(watching, 60)
    cuts = statistics.quantiles(lags, n=100)
    print(
        f"lag at {args.rate:.0f} Pods/s, {len(lags)} Pods: p50 {cuts[49] * 1000:.0f} ms, "
        f"p99 {cuts[98] * 1000:.0f} ms, longest {max(lags) * 1000:.0f} ms"
    )
    writer.end()
    await api.stop()
    store.kill()


async def fill(api, recordings, database, pods, told):
    """Show Pods as fast as they are recorded."""
    made = database.finished()
    goal = made + pods
    while made < goal:
        for _ in range(200):
            objects, count = recordings.next()
            made += count
            for kind, body in objects:
                api.put(kind, body)
        await until(lambda n=made: database.finished() >= n - 3000)
        told(made)
    await until(lambda: database.finished() >= made)
    return made


async def quiet(api, seconds=3.0):
    """Wait until the writer patches no Pod any more: those that were recorded last are labelled last."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        if api.patches != last:
            last, since = api.patches, time.monotonic()
        await asyncio.sleep(0.1)


async def settled(writer, pods):
    """Wait until the writer has seen all Pods, and compared or recorded all that it has seen."""

    def done():
        status = writer.status()
        return status["steps_seen"] >= pods and status["steps_unsettled"] == 0

    await until(done, every=0.5)


async def memory(args, folder):
    """The writer's memory while many Pods pass through it and stay in the cluster."""
    api, store, kubeconfig = await started(folder)
    writer, steps = Writer(folder, kubeconfig, store), []
    await writer.ready()
    print(f"{0:>8} Pods: {writer.mebibytes():.0f} MiB")
    begun = time.monotonic()

    def told(made):
        if not steps or made - steps[-1] >= args.pods // 10:
            steps.append(made)
            print(
                f"{made:>8} Pods, {time.monotonic() - begun:4.0f} s: {writer.mebibytes():.0f} MiB", flush=True
            )

    made = await fill(api, Recordings(), Database(store), args.pods, told)
    print(
        f"{made:>8} Pods, {time.monotonic() - begun:4.0f} s: {writer.mebibytes():.0f} MiB, "
        f"highest {writer.mebibytes('VmHWM'):.0f} MiB"
    )
    writer.end()
    await api.stop()
    store.kill()


async def relist(args, folder):
    """A start over many Pods that a writer before has recorded and labelled, and that ended in order."""
    api, store, kubeconfig = await started(folder)
    writer = Writer(folder, kubeconfig, store)
    await writer.ready()
    made = await fill(api, Recordings(), Database(store), args.pods, lambda _: None)
    await quiet(api)
    await asyncio.to_thread(writer.end)
    before, gets, used, begun = api.patches, api.gets, cpu_seconds(store.process), time.monotonic()
    writer = Writer(folder, kubeconfig, store)
    await writer.ready()
    await settled(writer, made)
    seconds = time.monotonic() - begun
    print(
        f"start over {made} recorded Pods: {seconds:.1f} s = {made / seconds:.0f}/s; "
        f"{writer.metric('memopod_writer_steps_recorded_total'):.0f} writes, {api.patches - before} patches, "
        f"{api.gets - gets} gets; CPU of the writer {cpu_seconds(writer.process):.1f} s, of the store "
        f"{cpu_seconds(store.process) - used:.1f} s; memory {writer.mebibytes():.0f}, highest "
        f"{writer.mebibytes('VmHWM'):.0f} MiB"
    )
    writer.end()
    await api.stop()
    store.kill()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    into = commands.add_parser("throughput")
    into.add_argument("--pods", type=int, default=6000)
    into.add_argument("--mariadb", action="store_true", help="a store on MariaDB instead of SQLite")
    for name, pods in (("memory", 100_000), ("relist", 50_000)):
        commands.add_parser(name).add_argument("--pods", type=int, default=pods)
    lagging = commands.add_parser("lag")
    lagging.add_argument("--rate", type=float, default=50)
    lagging.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    model = next(
        (s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")), ""
    )
    print(f"{os.cpu_count()} cores,{model.partition(':')[2]}, {platform.system()} {platform.release()}")
    run = {"throughput": throughput, "memory": memory, "relist": relist, "lag": lag}[args.what]
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(args, Path(folder)))


if __name__ == "__main__":
    main()
