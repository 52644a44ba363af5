"""Run the comparison; `make bench-store`. Ratios are between figures of one run on one machine."""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.store import calls, load, servers

CLIENTS = (1, 8, 32)
LARGE = ("GetExecutionsByContext", "PutLineageSubgraph", "GetLineageSubgraph")
ROUNDS = 7
console = Console(width=200)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "mysql", "both"], default="both")
    parser.add_argument("--scale", type=float, default=1.0, help="how long to measure, times 1.5 s a figure")
    parser.add_argument("--only", nargs="*", help="RPCs, or `isolation`")
    options = parser.parse_args()
    console.print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory(prefix="bench-store-") as folder:
        if options.database in {"sqlite", "both"}:
            compare("SQLite", lambda name: f"sqlite:///{folder}/{name}.db", options)
        if options.database in {"mysql", "both"}:
            with servers.mariadb() as url:
                compare("MariaDB", url, options)


def compare(kind, url_of, options):
    url = url_of("bench")
    core = calls.open_core(url, first=True)
    asked = calls.asked(calls.fill(core))
    chosen = {name: call for name, call in asked.items() if not options.only or call.rpc in options.only}
    table = Table(
        title=f"{kind}: calls a second (p50 / p99 in ms), medians of {ROUNDS} rounds; "
        "ratios within a round (least - greatest)",
        title_justify="left",
    )
    for column in (
        "RPC",
        "clients",
        "store",
        "bare gRPC",
        "store / bare",
        "core",
        "store / core",
        "re-opened",
        "store / re-opened",
    ):
        table.add_column(column, justify="left" if column == "RPC" else "right")
    for name, call in chosen.items():
        row(table, name, call, core, url, options.scale)
    console.print(table)
    workers(kind, url, {rpc: chosen[rpc] for rpc in LARGE if rpc in chosen}, core, options.scale)
    if not options.only or "isolation" in options.only:
        isolation(url, asked["GetContextByTypeAndName"], options.scale)


def row(table, name, call, core, url, scale):
    seconds = call.seconds * scale / ROUNDS
    constant = core.call(call.rpc, call.request()).response
    alone = {"core": lambda: in_process(core, call, seconds)}
    if call.rpc not in LARGE:
        alone["re-opened"] = lambda: reopened(url, call, seconds)
    with servers.store(url) as (port, _), servers.bare(constant) as bare:
        ports = {"store": port, "bare": bare}
        for n in CLIENTS:
            turns = load.in_turns(
                ports, call.rpc, call.request, clients=n, seconds=seconds, rounds=ROUNDS, alone=alone
            )
            cells = [shown(turns["store"])]
            for other in ("bare", "core", "re-opened"):
                cells += (
                    [shown(turns[other]), ratio(turns["store"], turns[other])] if other in turns else ["", ""]
                )
            table.add_row(name if n == CLIENTS[0] else "", str(n), *cells)


def workers(kind, url, chosen, core, scale):
    """What a second worker for heavy calls brings, besides the one that is kept for light ones.

    On SQLite one more worker writes, alone in any case.
    """
    if not chosen:
        return
    table = Table(title=f"{kind}: 8 clients, by workers for heavy calls", title_justify="left")
    for column in ("RPC", "core", "one", "one / core", "two", "two / core"):
        table.add_column(column, justify="left" if column == "RPC" else "right")
    for rpc, call in chosen.items():
        seconds = call.seconds * scale
        rates = [in_process(core, call, seconds).rate]
        for count in (1, 2):
            flag = count + (2 if kind == "SQLite" else 1)
            with servers.store(url, f"--workers={flag}") as (port, _):
                rates.append(load.ask(port, rpc, call.request, clients=8, seconds=seconds).rate)
        table.add_row(
            rpc, f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[1] / rates[0]:.2f}", f"{rates[2]:,.0f}",
            f"{rates[2] / rates[0]:.2f}",
        )  # fmt: skip
    console.print(table)


def isolation(url, light, scale):
    """One client lists 20,000 contexts without pause; what another one's small reads see."""
    heavy = ("GetContexts", calls.everything)
    with servers.store(url) as (port, _):
        alone = load.ask(port, light.rpc, light.request, clients=1, seconds=2 * scale)
        for count in (1, 3):
            small, large = load.beside(
                port, heavy, (light.rpc, light.request), seconds=4 * scale, heavy_clients=count
            )
            console.print(
                f"isolation: {light.rpc} alone p99 {alone.p99:.2f} ms; while {count} client(s) list "
                f"{calls.CONTEXTS:,} contexts ({large.rate:.1f}/s): "
                f"p50 {small.p50:.2f}, p99 {small.p99:.2f} ms"
            )


def in_process(core, call, seconds):
    return timed(lambda: core.call(call.rpc, call.request()), seconds)


def reopened(url, call, seconds):
    return timed(lambda: calls.open_core(url).call(call.rpc, call.request()), seconds)


def timed(once, seconds):
    times, start = [], time.perf_counter()
    while (began := time.perf_counter()) < start + seconds:
        answer = once()
        assert answer.code == 0, answer.error
        times.append(time.perf_counter() - began)
    return load.Measured.of(times, time.perf_counter() - start)


def shown(rounds):
    middle = [
        statistics.median(values) for values in zip(*((m.rate, m.p50, m.p99) for m in rounds), strict=True)
    ]
    return "{:,.0f} ({:.2f} / {:.2f})".format(*middle)


def ratio(ours, theirs):
    each = sorted(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(each):.2f} ({each[0]:.2f} - {each[-1]:.2f})"


if __name__ == "__main__":
    # The core prints what fails to descriptor 2, which Core therefore closes; ours is another one.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    assert Path.cwd() == servers.ROOT, f"run this in {servers.ROOT}"
    main()
