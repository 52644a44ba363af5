"""`memopod demo`: the example pipeline, twice, in a sandbox of its own; then where its output came from."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console

from cache_server.entries import open_entries
from memopod import lineage
from memopod.cli.run import run_pipeline, show_result
from memopod.kube import PODS, ApiError, Client
from memopod.lineage import render
from memopod.mlmd import StoreClient, StoreError
from memopod.sandbox.errors import SandboxError
from memopod.sandbox.pipelines import Plan, read_pipeline
from memopod.sandbox.processes import Process
from memopod.sandbox.runner import RunResult
from memopod.sandbox.state import read_description
from memopod.service import configure_logs
from memopod.steps import names

MESSAGE = "My ML pipeline running on HuaweiCloud CCE."
_START_TIMEOUT = 120.0
_RECORD_TIMEOUT = 30.0
_STOP_GRACE = 40.0
"""Seconds for the sandbox to end in order: longer than its slowest service gets."""
_PAUSE = 0.1
_PIPED_WIDTH = 118

T = TypeVar("T")


class DemoFailed(Exception):
    """Something was not as it should be."""


def demo() -> None:
    """Run the example pipeline twice: the second run is reused, and the lineage tells so.

    Starts a cluster on this machine with all of memopod's services in a temporary folder, and ends and
    removes it all afterwards.

    Example: memopod demo
    """
    configure_logs("demo", level="warning")
    raise typer.Exit(asyncio.run(_until_signal()))


async def _until_signal() -> int:
    showing = asyncio.create_task(_demo(), name="demo")
    interrupted = False

    def on_signal(number: int) -> None:
        nonlocal interrupted
        if interrupted:
            # The guards of all processes notice, and end them.
            os._exit(128 + number)
        interrupted = True
        typer.echo("stopping", err=True)
        showing.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await showing
    except asyncio.CancelledError:
        return 130
    except (DemoFailed, SandboxError, ApiError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    return 0


async def _demo() -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    with tempfile.TemporaryDirectory(prefix="memopod-demo-") as folder:
        state = Path(folder) / "sandbox"
        log = Path(folder) / "sandbox.log"
        console.rule("a cluster on this machine", align="left")
        with log.open("wb") as output:
            command = (sys.executable, "-m", "memopod.cli", "sandbox", "up", "--state", str(state))
            sandbox = await Process.start(command, log=output)
        try:
            description = await _started(console, sandbox, state, log)
            await _show(console, state, str(description["envoy"]["address"]))
        finally:
            await _stop(sandbox)
    console.print("\nAll as it should be. The cluster is gone; to keep one: [bold]memopod sandbox up[/]")


async def _stop(sandbox: Process) -> None:
    """End the sandbox in order, also when the demo is interrupted meanwhile."""
    stopping = asyncio.create_task(sandbox.stop(_STOP_GRACE), name="stop the sandbox")
    try:
        await asyncio.shield(stopping)
    except asyncio.CancelledError:
        await stopping
        raise


async def _started(console: Console, sandbox: Process, state: Path, log: Path) -> dict[str, Any]:
    told = 0

    async def ready() -> dict[str, Any] | None:
        nonlocal told
        lines = (await asyncio.to_thread(log.read_text, errors="replace")).splitlines()
        for line in lines[told:]:
            if line.startswith("started "):
                console.print(f"  {line}", highlight=False)
        told = len(lines)
        if not sandbox.running:
            raise DemoFailed("the sandbox did not start:\n" + "\n".join(lines[-20:]))
        if "ready" not in lines:
            return None
        return read_description(state)

    return await _eventually(ready, "the sandbox is ready", _START_TIMEOUT)


async def _show(console: Console, state: Path, envoy: str) -> None:
    with as_file(files("memopod.sandbox") / "examples" / "pipeline.yaml") as path:
        plan = read_pipeline(path)
    task = plan.tasks[0].name
    console.rule(f'run 1: message="{MESSAGE}"', align="left")
    first = await _run(console, state, plan)
    await _check_executed(state, first)
    console.print(f"  [green]executed[/] its step in {first.tasks[0].seconds:.1f} s", highlight=False)

    await _eventually(lambda: _has_entry(state), "the cache server has recorded run 1", _RECORD_TIMEOUT)
    console.rule("run 2: the same message", align="left")
    second = await _run(console, state, plan)
    await _check_reused(state, second)
    console.print(
        "  [cyan]reused[/]: held by its gate, never bound to a node, never started as a process\n"
        "  [dim](half a second is kept for Argo, whose two watches are not ordered, however long the "
        "step ran)[/]",
        highlight=False,
    )

    console.rule(f"where the output came from, read through Envoy at {envoy}", align="left")
    async with StoreClient(envoy) as client:
        graph = await _eventually(
            lambda: _lineage(client, first.run, second.run, task),
            "the metadata writer has recorded both runs",
            _RECORD_TIMEOUT,
        )
    console.print(render.tree(graph))
    console.print()
    console.print(render.table(graph))


async def _run(console: Console, state: Path, plan: Plan) -> RunResult:
    result = await run_pipeline(state, plan, {"message": MESSAGE}, console, asyncio.Event(), timeout=120)
    show_result(console, state, result)
    _expect(result.state == "Succeeded", f"{result.run}: expected Succeeded, got {result.state}")
    _expect(
        result.outputs == {"Output": MESSAGE},
        f"{result.run}: its output is not the message that it was given",
    )
    return result


async def _check_executed(state: Path, result: RunResult) -> None:
    task = result.tasks[0]
    _expect(task.decision == "executed", f"run 1: expected its step executed, got {task.decision!r}")
    log = state / "pods" / task.pod_uid / "main.log"
    _expect(log.is_file(), "run 1: its step left no log, so it did not run as a process")


async def _check_reused(state: Path, result: RunResult) -> None:
    task = result.tasks[0]
    _expect(
        task.decision == "reused", f"run 2: expected its step reused, got {task.decision!r} ({task.reason})"
    )
    async with Client.from_kubeconfig(str(state / "kubeconfig"), user_agent="memopod-demo") as client:
        pod = await client.get(PODS, task.pod, namespace="pipelines")
    gates = {gate["name"] for gate in pod["spec"].get("schedulingGates") or ()}
    _expect(names.GATE in gates, "run 2: its Pod was not held by the gate to the end")
    _expect(not pod["spec"].get("nodeName"), "run 2: its Pod was bound to a node")
    _expect(not (state / "pods" / task.pod_uid).exists(), "run 2: its step started as a process")


async def _has_entry(state: Path) -> bool | None:
    async with open_entries(f"sqlite:///{state / 'cache.db'}", read_only=True) as entries:
        return bool(await entries.list(limit=1)) or None


async def _lineage(client: StoreClient, first: str, second: str, task: str) -> lineage.Graph | None:
    """The lineage of the second run's output, once the store knows that the first run is behind it."""
    try:
        graph = await lineage.up(client, f"{second}/{task}:Output")
    except (lineage.LineageError, StoreError):
        return None
    reused = any(edge.relation is lineage.Relation.REUSED for edge in graph.edges)
    runs = {getattr(node, "run", "") for node in graph.nodes.values()}
    return graph if reused and {first, second} <= runs else None


async def _eventually(question: Callable[[], Awaitable[T | None]], what: str, within: float) -> T:
    """Ask until there is an answer. Raises DemoFailed after `within` seconds."""
    try:
        async with asyncio.timeout(within):
            while True:
                answer = await question()
                if answer is not None:
                    return answer
                await asyncio.sleep(_PAUSE)
    except TimeoutError:
        raise DemoFailed(f"waited {within:g} s, and still it is not so that {what}") from None


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DemoFailed(otherwise)
