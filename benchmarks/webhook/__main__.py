"""How many admissions a webhook answers, beside a server that only reads and allows.

    make bench-webhook                 (all parts, about ten minutes)
    make bench-webhook ARGS=gate       (or processes, placeholder, memory)

The load generator is wrk, on the same machine: 16 connections, TLS, keep-alive. With one process, server and
generator have a core each. Reviews are of 64 runs of each recorded step, with names of their own; where steps
were never seen, each request brings another one. Floor and webhook take turns, three rounds, and medians are
compared. CPU is that of the server's processes for each request: it tells the two apart on a machine that is
busy otherwise.
"""

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from reviews import held, of_new_step, salted, with_managed_fields, write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import insert

from cache_server.artifacts import Artifacts
from cache_server.entries import Entry, open_entries
from cache_server.entries.creation import ensure_database
from cache_server.entries.rows import to_row
from cache_server.entries.schema import entries as table
from cache_server.entries.tokens import ensure_token
from cache_server.identity import Identifier
from memopod.kube import Client
from memopod.sandbox.certificates import prepare_state
from memopod.sandbox.ports import free_ports
from memopod.steps import Outputs, read_step
from memopod.steps.key import KEY_VERSION, KeyRules
from memopod.steps.outputs import declared

HERE = Path(__file__).parent
CONNECTIONS, WARM = 16, 1
SECONDS, ROUNDS = int(os.environ.get("SECONDS", "4")), int(os.environ.get("ROUNDS", "3"))
STORED = int(os.environ.get("STORED", "200000"))
HIT_KEYS, MEMORY_KEYS = STORED // 20, 50
"""Salts: with each, every review is a step of its own."""
ODD_SHARE = float(os.environ.get("ODD_SHARE", "0.01"))
"""Part of the answers that may be others than a load is about (a deadline that passed)."""
ADMISSIONS = int(os.environ.get("ADMISSIONS", "1000000"))
NAMESPACE = "kubeflow"
console = Console(width=max(110, Console().width))


@dataclass
class Measured:
    rate: float
    p50: float
    p99: float
    errors: float
    cpu: float

    @classmethod
    def median(cls, all_):
        return cls(
            *(statistics.median(getattr(m, f) for m in all_) for f in ("rate", "p50", "p99", "errors", "cpu"))
        )


class Bench:
    def __init__(self, folder):
        self.folder = folder
        self.files = prepare_state(folder / "state", 1)
        self.cores = sorted(os.sched_getaffinity(0))

    @contextmanager
    def server(self, mode, *, processes=1, **options):
        (port,) = free_ports(1)
        command = [
            sys.executable, str(HERE / "server.py"), mode, f"--port={port}", f"--processes={processes}",
            f"--cert={self.files.cache_server.certificate}", f"--key={self.files.cache_server.key}",
            *(f"--{name}={value}" for name, value in options.items()),
        ]  # fmt: skip
        if processes == 1 and len(self.cores) > 1:
            command = ["taskset", "-c", str(self.cores[0]), *command]
        process = subprocess.Popen(command)
        try:
            self.wait(port, process)
            yield port, process
        finally:
            process.terminate()
            process.wait(30)

    @staticmethod
    def wait(port, process):
        ask = ["curl", "-sk", "--max-time", "2", f"https://127.0.0.1:{port}/mutate"]
        deadline = time.monotonic() + 60
        while subprocess.run(ask, capture_output=True, check=False).returncode:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)

    def load(self, target, bodies, *, seconds=SECONDS, salts=0, pinned=True, expect="", odd_share=ODD_SHARE):
        port, process = target
        command = [
            "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(HERE / "load.lua"),
            f"https://127.0.0.1:{port}/mutate",
        ]  # fmt: skip
        if pinned and len(self.cores) > 1:
            command = ["taskset", "-c", str(self.cores[1]), *command]
        environ = {**os.environ, "BODIES": str(bodies), "SALTS": str(salts), "EXPECT": expect}
        before = cpu_seconds(process.pid)
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        cpu = (cpu_seconds(process.pid) - before) / seconds
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")] or [done.stderr]
        requests, micros, p50, p99, errors, odd = map(int, line.split()[1:7])
        others = "".join(line.split()[7:]).strip(",")
        if odd:
            console.print(f"  {odd:,} of {requests:,} answers did not have the reason {expect}: {others}")
        if odd > requests * odd_share:
            sys.exit(1)
        rate = requests / micros * 1e6
        return Measured(rate, p50 / 1000, p99 / 1000, errors, cpu / rate * 1e6)

    def compare(self, variants):
        """`name -> (server, bodies, salts, pinned[, reason])`: each in turn, `ROUNDS` times; medians by name.

        `reason` is the one that the answers must have.
        """
        found = {name: [] for name in variants}
        for round_ in range(ROUNDS):
            for name, (server, bodies, salts, pinned, *reason) in variants.items():
                options = {"salts": salts, "pinned": pinned, "expect": "".join(reason)}
                if round_ == 0:
                    self.load(server, bodies, seconds=WARM, **options, odd_share=1)
                found[name].append(self.load(server, bodies, **options))
        return {name: Measured.median(all_) for name, all_ in found.items()}


def show(title, rows, floor):
    heads = ("", "requests/s", "ratio", "p50 ms", "p99 ms", "CPU us", "ratio", "errors")
    out = Table(*heads, title=title, title_justify="left")
    for name, m in rows.items():
        figures = f"{m.rate:,.0f}", f"{m.rate / floor.rate:.2f}", f"{m.p50:.2f}", f"{m.p99:.2f}"
        out.add_row(name, *figures, f"{m.cpu:.0f}", f"{floor.cpu / m.cpu:.2f}", f"{m.errors:g}")
    console.print(out)


def gate(bench):
    kinds = {
        "": lambda review: review,
        ", managedFields": with_managed_fields,
        ", steps never seen": of_new_step,
    }
    folders = {kind: bench.folder / f"gate{number}" for number, kind in enumerate(kinds)}
    sizes = {
        kind: write([(n, change(r)) for n, r in held()], folders[kind]) for kind, change in kinds.items()
    }
    with bench.server("floor") as floor, bench.server("gate") as port:
        servers = {"floor": floor, "gate": port}
        found = bench.compare({
            f"{name}{kind}": (server, folders[kind], 0, True)
            for kind in kinds for name, server in servers.items()
        })  # fmt: skip
    for kind, size in sizes.items():
        rows = {name: found[name] for name in (f"floor{kind}", f"gate{kind}")}
        show(f"gate mode, one process, {size:,} bytes a review", rows, rows[f"floor{kind}"])


def processes(bench):
    plain = bench.folder / "plain-processes"
    size = write(held(), plain)
    with bench.server("gate", processes=1) as one, bench.server("gate", processes=2) as two:
        found = bench.compare({"one": (one, plain, 0, True), "two": (two, plain, 0, False)})
    show(f"gate mode, processes on one port, {size:,} bytes a review (ratio: to one)", found, found["one"])


@contextmanager
def mariadb(folder):
    """A server of this benchmark's own, as the tests start one."""
    from tests import conftest

    class Factory:
        def getbasetemp(self):
            return folder

    start = conftest.mariadb
    generator = getattr(start, "__wrapped__", None) or start._get_wrapped_function()  # noqa: SLF001
    made = generator(Factory())
    server = next(made)
    try:
        yield f"mysql://{server.user}:{quote(server.password, safe='')}@127.0.0.1:{server.port}/bench"
    finally:
        next(made, None)


@contextmanager
def redis():
    (port,) = free_ports(1)
    process = subprocess.Popen(["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def api_server(folder):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "memopod.sandbox.apiserver", "--state", str(folder / "api")]
    process = subprocess.Popen([*command, "--listen-port", str(port)], stderr=subprocess.DEVNULL)
    path = folder / "api" / "kubeconfig"
    try:
        while subprocess.run(
            ["curl", "-sk", f"https://127.0.0.1:{port}/readyz"], capture_output=True, check=False
        ).returncode:
            assert process.poll() is None, "the API server ended"
            time.sleep(0.1)
        yield str(path)
    finally:
        process.terminate()
        process.wait(30)


def simple():
    """Reviews of steps that read and write no artifact: their keys need nothing but the Pod."""
    for name, review in held():
        step = read_step(review["request"]["object"], namespace=NAMESPACE)
        template = step.template or {}
        artifacts = declared(template, "artifacts") or (template.get("inputs") or {}).get("artifacts")
        if not artifacts and not step.wants_result and step.template is not None:
            review["request"]["namespace"] = NAMESPACE
            review["request"]["object"]["metadata"]["namespace"] = NAMESPACE
            yield name, salted(review)


async def fill(url, kubeconfig):
    """`STORED` entries, of which `HIT_KEYS` are those of the reviews with a salt from 0 on."""
    await ensure_database(url)
    reviews = [review["request"]["object"] for _, review in simple()]
    async with (
        open_entries(url) as opened,
        Client.from_kubeconfig(kubeconfig) as client,
        opened.database.engine.connect() as connection,
    ):
        # As the first entry of a namespace does: without a token nothing of it is remembered.
        await ensure_token(connection, NAMESPACE)
        identifier = Identifier(client, Artifacts.from_settings(()), opened, KeyRules())
        rows, keys = [], set()
        for number in track(range(STORED), "entries", console=console, transient=True):
            pod = reviews[number % len(reviews)]
            pod["metadata"]["annotations"]["memopod.io/salt"] = f"{number // len(reviews):012d}"
            step = read_step(pod, namespace=NAMESPACE)
            hit = number < HIT_KEYS * len(reviews)
            key = (await identifier.identify(step)).key.digest if hit else ""
            if key in keys or not hit:
                # Some recordings are of equal steps.
                key = uuid.uuid4().hex * 2
            keys.add(key)
            rows.append(to_row(entry_of(step, key)))
            if len(rows) == 1000:
                await connection.execute(insert(table), rows)
                await connection.commit()
                rows.clear()


def entry_of(step, key):
    now = datetime.now(UTC)
    values = {str(p["name"]): "value" for p in declared(step.template or {}, "parameters")}
    return Entry(
        id=uuid.uuid4().hex, namespace=NAMESPACE, key=key, key_version=KEY_VERSION, components={},
        template_name=step.template_name, workflow="w", workflow_uid="u", node_id="n", pod_name="p",
        pod_uid=uuid.uuid4().hex, image_id="", outputs=Outputs(parameters=values), execution_id=None,
        started_at=now, finished_at=now, recorded_at=now,
    )  # fmt: skip


def placeholder(bench):
    bodies = bench.folder / "simple"
    size = write(simple(), bodies)
    with mariadb(bench.folder) as url, redis() as shared, api_server(bench.folder) as kubeconfig:
        asyncio.run(fill(url, kubeconfig))
        options = {"kubeconfig": kubeconfig, "database": url}
        with (
            bench.server("floor") as floor,
            bench.server("placeholder", **options) as port,
            bench.server("placeholder", redis=shared, **options) as port2,
        ):
            found = bench.compare({
                "floor": (floor, bodies, 0, True),
                f"MariaDB, hits over {HIT_KEYS:,} keys": (port, bodies, HIT_KEYS, True, "hit"),
                "MariaDB, misses": (port, bodies, 0, True, "miss"),
                f"Redis in front, hits over {HIT_KEYS:,} keys": (port2, bodies, HIT_KEYS, True, "hit"),
                "Redis in front, misses": (port2, bodies, 0, True, "miss"),
                f"from memory, hits over {MEMORY_KEYS:,} keys": (port, bodies, MEMORY_KEYS, True, "hit"),
            })  # fmt: skip
    show(f"placeholder mode, {STORED:,} entries, {size:,} bytes a review", found, found["floor"])


def memory(bench):
    plain = bench.folder / "plain-memory"
    write(held(), plain)
    console.print("memory of a replica")
    with bench.server("gate") as server:
        total, seconds = 0.0, 20
        while True:
            console.print(f"  after {total:>9,.0f} admissions: {resident(server[1].pid):6.1f} MB")
            if total >= ADMISSIONS:
                return
            total += bench.load(server, plain, seconds=seconds).rate * seconds


def cpu_seconds(pid):
    """Of a process and its children, user and system."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    total = 0.0
    for each in pids:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def resident(pid):
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


PARTS = {"gate": gate, "processes": processes, "placeholder": placeholder, "memory": memory}


def machine():
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "")
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {model}, Python {platform.python_version()}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parts = parser.parse_args().parts or list(PARTS)
    missing = [program for program in ("wrk", "curl", "taskset") if not shutil.which(program)]
    if missing:
        sys.exit(f"bench-webhook needs {', '.join(missing)} (Debian packages wrk, curl, util-linux)")
    console.print(machine())
    with tempfile.TemporaryDirectory(prefix="memopod-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        for part in parts:
            PARTS[part](Bench(Path(folder)))


if __name__ == "__main__":
    main()
