"""How long `memopod why` takes to find the nearest earlier run among many entries, and whether it is right.

    make bench-why     (its catalogue of changes is that of tests/fuzz and tests/steps)

Each kind of change is made to a recorded step. The entry of the unchanged step is one of many: half of all
entries are of its template or two others, and differ from it in several parts. The floor is one look-up of an
entry by its key in the same database.
"""

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import cpu_count
from pathlib import Path

from rich.progress import track
from step_changes import MISFITS, SEMANTIC
from test_explain import FIRST_CAUSES

from cache_server.entries import Entry, open_entries
from cache_server.entries.candidates import of_template
from cache_server.why import nearest_of
from memopod.steps import Outputs, read_step
from memopod.steps.explain import causes
from memopod.steps.key import KEY_VERSION, base_key

ROOT = Path(__file__).parents[1]
NAMESPACE = "pipelines"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 1_000
RECORDINGS = ("parameters.make", "script.s", "containerset")


def recorded(name):
    return json.loads((ROOT / "tests" / "samples" / "argo-4.1.2" / f"{name}.pod.json").read_text())


def components_of(pod):
    return base_key(read_step(pod)).components


def seeded():
    """(kind, template of the unchanged step, components after the change) of each kind."""
    for kind in FIRST_CAUSES:
        for name in RECORDINGS:
            pod = recorded(name)
            try:
                SEMANTIC[kind](pod, 1)
            except MISFITS:
                continue
            yield kind, name, components_of(pod)
            break


def entry(template, components, finished):
    return Entry(
        id=uuid.uuid4().hex, namespace=NAMESPACE, key=uuid.uuid4().hex * 2, key_version=KEY_VERSION,
        components=components, template_name=template, workflow="run", workflow_uid="u", node_id="n",
        pod_name=f"pod-{uuid.uuid4().hex}", pod_uid=uuid.uuid4().hex, image_id="python@sha256:0",
        outputs=Outputs(parameters={"message": "x" * 200}), execution_id=None, started_at=finished,
        finished_at=finished, recorded_at=finished,
    )  # fmt: skip


def many(count):
    """Entries, newest last, that differ from the recorded steps in several parts; their own among them."""
    chosen = random.Random(20260101)
    bases = {name: components_of(recorded(name)) for name in RECORDINGS}
    for number in range(count):
        base = bases[chosen.choice(RECORDINGS)]
        other = {
            **base, **{name: f"{chosen.randrange(16**16):016x}" for name in chosen.sample(sorted(base), 6)}
        }  # fmt: skip
        template = chosen.choice(RECORDINGS) if number % 2 else f"template-{chosen.randrange(500)}"
        yield entry(template, other, NOW + timedelta(seconds=number))
        if number == count - 200:
            for name, own in bases.items():
                yield replace(entry(name, own, NOW + timedelta(seconds=number)), image_id=f"own {name}")


async def fill(entries, count):
    batch, total = [], count + len(RECORDINGS)
    for one in track(many(count), "entries", total=total, transient=True):
        batch.append(one)
        if len(batch) == BATCH:
            await entries.put_all(batch)
            batch = []
    await entries.put_all(batch)


async def explain(database, template, components):
    found = nearest_of(await of_template(database, NAMESPACE, template), components, whole=True)
    return found, causes(found.components, components)


async def measure(url):
    times, worked, floor, right, wrong = [], [], [], 0, []
    async with open_entries(url, call_timeout=60.0, read_only=True) as entries:
        cases = list(seeded())
        for kind, template, components in cases * 5:
            start = time.perf_counter()
            await entries.find(NAMESPACE, "0" * 64)
            middle, before = time.perf_counter(), time.process_time()
            found, told = await explain(entries.database, template, components)
            times.append(time.perf_counter() - middle)
            worked.append(time.process_time() - before)
            floor.append(middle - start)
            if told[0].sentence == FIRST_CAUSES[kind] and found.image_id == f"own {template}":
                right += 1
            else:
                wrong.append(kind)
    return times, worked, floor, right / 5, sorted(set(wrong)), len(cases)


def shown(times):
    ordered = sorted(times)
    at = [statistics.median(ordered), ordered[int(len(ordered) * 0.95)], ordered[-1]]
    return "  ".join(
        f"{name} {1000 * t:6.1f} ms" for name, t in zip(("median", "p95", "max"), at, strict=True)
    )


async def run(count):
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/cache.db"
        async with open_entries(url, call_timeout=120.0) as entries:
            await fill(entries, count)
        times, worked, floor, right, wrong, cases = await measure(url)
    print(f"{platform.platform()}, {cpu_count()} CPUs, Python {platform.python_version()}, SQLite")
    print(
        f"{count} entries, half of them of {len(RECORDINGS)} templates; {cases} kinds of change, 5 times each"
    )
    print(f"  explained        {shown(times)}")
    print(f"  CPU of that      {shown(worked)}")
    print(f"  one look-up      {shown(floor)}")
    print(f"  first cause right: {right:g} of {cases}{f', wrong: {wrong}' if wrong else ''}")
    return 0 if not wrong else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=100_000)
    return asyncio.run(run(parser.parse_args().entries))


if __name__ == "__main__":
    sys.exit(main())
