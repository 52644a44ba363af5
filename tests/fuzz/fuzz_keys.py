"""Many steps, built from the recordings by random changes: the same content, and only that, has the same key.

    python tests/fuzz/fuzz_keys.py [--steps N] [--seed N]     (`make fuzz`)
    python tests/fuzz/fuzz_keys.py --seed N --show STEP       what a step is made of

A step's content is judged without the rules of keys: it is the recorded step with only its semantic
changes, and recordings of one step are the same step. Each step depends on the seed and its number
alone, however many processes share the work.
"""

import argparse
import hashlib
import json
import os
import pickle
import random
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path

import step_changes
import step_edits
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memopod.steps import NotAStep, names, read_step
from memopod.steps.argo import containers
from memopod.steps.key import Unkeyable, base_key

SAMPLES = Path(__file__).parents[1] / "samples"
CHUNK = 1_000
KEY_BYTES, CONTENT_BYTES = 32, 16
NO_KEY, NO_CONTENT = bytes(KEY_BYTES), bytes(CONTENT_BYTES)
CHANGES = {**step_changes.SEMANTIC, **step_changes.NOT_SEMANTIC}


class Recording:
    """A recorded Pod; `original` is the first recording of the same step, itself for most."""

    def __init__(self, name, pod):
        self.name = name
        self.frozen = pickle.dumps(pod)
        self.key = _key(pod)
        self.kinds = [kind for kind in CHANGES if self._takes(kind)]
        self.original = self

    def is_of(self, original):
        self.original = original
        self.kinds = [kind for kind in self.kinds if kind in original.kinds]

    def pod(self):
        return pickle.loads(self.frozen)

    def _takes(self, kind):
        try:
            CHANGES[kind](self.pod(), 1)
        except step_changes.MISFITS:
            return False
        return True


@cache
def recordings():
    found, originals = [], {}
    for path in sorted(SAMPLES.glob("argo-*/*.json")):
        if not path.name.endswith((".admission.json", ".pod.json")):
            continue
        value = json.loads(path.read_text())
        pod = value["request"]["object"] if "request" in value else value
        recording = Recording(str(path.relative_to(SAMPLES)), pod)
        if recording.key is not None:
            recording.is_of(originals.setdefault(recording.key, recording))
        found.append(recording)
    return found


def _key(pod):
    """The key, or None for what is not to have one. Anything else that is raised is a defect."""
    try:
        return bytes.fromhex(base_key(read_step(pod, namespace="kubeflow")).digest)
    except (NotAStep, Unkeyable):
        return None


def plan(seed, number):
    """What a step is made of: a recording, changes as (kind, number), and a seed of damage or None."""
    chosen = random.Random(f"{seed}/{number}")
    recording = chosen.choice(recordings())
    changes = [
        # Few numbers, so that equal steps occur; many, so that different ones do.
        (
            chosen.choice(recording.kinds),
            chosen.choice((0, 1, 2, chosen.randrange(100), chosen.randrange(10**9))),
        )
        for _ in range(chosen.choice((0, 1, 1, 2, 2, 3, 4, 6, 9)))
    ]
    readable = "template name" in recording.kinds
    damage = chosen.randrange(2**32) if readable and chosen.random() < 0.1 else None
    return recording, changes, damage


def build(recording, changes):
    pod = recording.pod()
    for kind, number in changes:
        CHANGES[kind](pod, number)
    return pod


def content(recording, changes):
    """Digest of what decides the step's result, by the catalogues alone."""
    semantic = tuple(change for change in changes if change[0] in step_changes.SEMANTIC)
    return _content(recording.original, semantic)


@lru_cache(10_000)
def _content(original, semantic):
    pod = build(original, semantic)
    pod["spec"]["volumes"].sort(key=lambda volume: volume["name"])
    wanted = False
    for container in containers(pod):
        for variable in container.get("env") or ():
            if variable["name"] == "ARGO_TEMPLATE" and variable["value"] != names.OFFLOADED:
                variable["value"] = json.loads(variable["value"])
            elif variable["name"] == names.ENV_INCLUDE_RESULT:
                wanted |= variable["value"] == "true"
        # Its place among the other variables says nothing.
        container["env"] = [v for v in container.get("env") or () if v["name"] != names.ENV_INCLUDE_RESULT]
    text = json.dumps([original.name, wanted, pod], sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:CONTENT_BYTES]


def damage_template(pod, seed):
    """Put a value of any kind anywhere into the template, the same into each container's copy."""

    def damage(template):
        chosen = random.Random(seed)
        holder, place = template, chosen.choice(sorted(template))
        while isinstance(holder[place], dict | list) and holder[place] and chosen.random() < 0.7:
            holder = holder[place]
            place = chosen.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[place] = step_edits.any_value(chosen.randrange(10**6))

    step_edits.template(pod, damage)


def examine(seed, start, count):
    """Keys and contents of so many steps, what they were, and the number and traceback of each crash."""
    keys, contents, counts, crashes = [], [], Counter(), []
    for number in range(start, start + count):
        key, step_content, what = NO_KEY, NO_CONTENT, "crashed"
        try:
            found, what = _examine(*plan(seed, number))
            if found:
                key, step_content = found
        except Exception:  # noqa: BLE001 - to find these is what this program is for
            crashes.append((number, traceback.format_exc()))
        counts[what] += 1
        keys.append(key)
        contents.append(step_content)
    return b"".join(keys), b"".join(contents), counts, crashes


def _examine(recording, changes, damage):
    """(key, content) or None where there is nothing to compare, and what it was."""
    pod = build(recording, changes)
    if damage is not None:
        damage_template(pod, damage)
    key = _key(pod)
    what = f"{'whole' if damage is None else 'damaged'}, {'with' if key else 'without'} a key"
    # No catalogue says what a damaged step is, or what a recording without a key becomes.
    if key is None or damage is not None or recording.key is None:
        return None, what
    return (key, content(recording, changes)), what


class Comparison:
    """All keys and contents seen so far, by number of step."""

    def __init__(self):
        self.keys, self.contents = bytearray(), bytearray()
        self.by_key, self.by_content = {}, {}
        self.counts, self.crashes, self.faults = Counter(), [], []

    def add(self, keys, contents, counts, crashes):
        first = len(self.keys) // KEY_BYTES
        self.keys += keys
        self.contents += contents
        self.counts += counts
        self.crashes += crashes
        for position in range(len(keys) // KEY_BYTES):
            self._compare(first + position)

    def _compare(self, number):
        key, content = self._at(number)
        if not any(content):
            return
        same_key = self.by_key.setdefault(key, number)
        same_content = self.by_content.setdefault(content, number)
        if self._at(same_key)[1] != content:
            self.faults.append(("two contents, one key", same_key, number))
        if self._at(same_content)[0] != key:
            self.faults.append(("one content, two keys", same_content, number))

    def _at(self, number):
        return (
            bytes(self.keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]),
            bytes(self.contents[number * CONTENT_BYTES : (number + 1) * CONTENT_BYTES]),
        )


def run(seed, steps):
    starts = range(0, steps, CHUNK)
    sizes = [min(CHUNK, steps - start) for start in starts]
    comparison = Comparison()
    columns = (TextColumn("keys"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(os.cpu_count()) as pool:
        task = progress.add_task("keys", total=steps)
        for size, result in zip(sizes, pool.map(partial(examine, seed), starts, sizes), strict=True):
            comparison.add(*result)
            progress.advance(task, size)
    return comparison


def show(seed, number):
    recording, changes, damage = plan(seed, number)
    print(f"step {number}: {recording.name} (as {recording.original.name})")
    for kind, n in changes:
        print(f"  {'semantic' if kind in step_changes.SEMANTIC else 'not semantic'}: {kind} ({n})")
    if damage is not None:
        print(f"  damage ({damage})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=20260822)
    parser.add_argument("--show", type=int, metavar="STEP", help="print what one step is made of")
    arguments = parser.parse_args()
    if arguments.show is not None:
        show(arguments.seed, arguments.show)
        return 0
    began = time.monotonic()
    found = run(arguments.seed, arguments.steps)
    print(f"{arguments.steps} steps of {len(recordings())} recordings, seed {arguments.seed}:")
    for what, count in sorted(found.counts.items()):
        print(f"  {count:>9} {what}")
    print(f"  {len(found.by_key):>9} different keys, {len(found.by_content)} different contents")
    print(
        f"  {len(found.faults):>9} wrong keys, {len(found.crashes)} crashes, {time.monotonic() - began:.0f} s"
    )
    for what, first, second in found.faults[:5]:
        print(f"\n{what}:")
        show(arguments.seed, first)
        show(arguments.seed, second)
    for number, text in found.crashes[:5]:
        print(f"\n{text}")
        show(arguments.seed, number)
    return 1 if found.faults or found.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
