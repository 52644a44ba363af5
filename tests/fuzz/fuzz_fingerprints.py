"""Many template texts: Kubeflow's fingerprint as we compute it, and as Go does, byte for byte.

python tests/fuzz/fuzz_fingerprints.py [--texts N] [--seed N]     (`make fuzz`)
"""

import argparse
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import template_texts
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CHUNK = 1_000


def compare(oracle, seed, start, count):
    """Disagreements over one chunk, which depends on the seed and its start alone."""
    texts = list(template_texts.generate(random.Random(f"{seed}/{start}"), count))
    with_fingerprint = sum(template_texts.ours(text) not in (b"refused", b"panic") for text in texts)
    return template_texts.disagreements(oracle, texts), with_fingerprint


def run(oracle, seed, count):
    starts = range(0, count, CHUNK)
    sizes = [min(CHUNK, count - start) for start in starts]
    columns = (TextColumn("fingerprints"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    different, sound = [], 0
    with Progress(*columns) as progress, ProcessPoolExecutor(os.cpu_count()) as pool:
        task = progress.add_task("fingerprints", total=count)
        results = pool.map(partial(compare, oracle, seed), starts, sizes)
        for size, (found, with_fingerprint) in zip(sizes, results, strict=True):
            different += found
            sound += with_fingerprint
            progress.advance(task, size)
    return different, sound


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20260822)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            oracle = template_texts.Oracle(folder)
        except FileNotFoundError as error:
            print(f"fingerprints were not compared: {error}", file=sys.stderr)
            return 1 if os.environ.get("CI") == "true" else 0
        began = time.monotonic()
        different, sound = run(oracle, arguments.seed, arguments.texts)
    print(f"{arguments.texts} template texts, seed {arguments.seed}:")
    print(f"  {sound:>9} with a fingerprint, {arguments.texts - sound} without one")
    print(f"  {len(different):>9} disagreements with Go, {time.monotonic() - began:.0f} s")
    for text, mine, theirs in different[:5]:
        print(f"\n{text[:500]!r}\n  ours {mine[:500]!r}\n  Go's {theirs[:500]!r}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
