"""`memopod run`: run a pipeline file in a sandbox."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from memopod.cli.ending import fail
from memopod.cli.progress import Progress, summary
from memopod.kube import ApiError, Client, ConfigurationError
from memopod.sandbox.errors import SandboxError
from memopod.sandbox.pipelines import PipelineError, Plan, parse_parameters, read_pipeline
from memopod.sandbox.runner import Run, RunResult, log_tail
from memopod.sandbox.state import DEFAULT, read_description
from memopod.service import configure_logs

_INTERRUPTED = 130


def run(
    pipeline: Annotated[
        Path,
        typer.Argument(metavar="PIPELINE.yaml", help="A pipeline as the kfp SDK compiles it (IR 2.1.0)."),
    ],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", metavar="NAME=VALUE", help="A parameter of the pipeline; repeatable."
        ),
    ] = None,
    state: Annotated[
        Path,
        typer.Option(
            "--state", metavar="DIR", envvar="MEMOPOD_STATE", help="State folder of the sandbox to run in."
        ),
    ] = DEFAULT,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, last.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Run every step, whatever the file says.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Stop the run after this time.")
    ] = 3600.0,
) -> None:
    """Run a pipeline in a sandbox, and show what ran and what was reused.

    Exit status: 0 if the run succeeded, 1 if it failed or could not start, 130 after Ctrl-C.

    Example: memopod run pipeline.yaml -p message="hello" -p count=3
    """
    configure_logs("run", level="warning")
    console = Console(stderr=as_json)
    try:
        plan = read_pipeline(pipeline)
        parameters = parse_parameters(parameter or (), plan.parameters)
        sandbox = Path(read_description(state)["state"])
        for notice in plan.notices:
            typer.echo(f"note: {notice}", err=True)
        result = asyncio.run(
            _until_signal(sandbox, plan, parameters, console, cached=not no_cache, timeout=timeout)
        )
    except (PipelineError, SandboxError, ConfigurationError) as error:
        fail(str(error))
    except ApiError as error:
        fail(f"the sandbox's API server does not answer as it should: {error}")
    show_result(console, sandbox, result)
    if as_json:
        typer.echo(json.dumps(result.to_json(), ensure_ascii=False))
    if result.stopped and result.message == "stopped":
        raise typer.Exit(_INTERRUPTED)
    raise typer.Exit(0 if result.state == "Succeeded" else 1)


async def _until_signal(
    sandbox: Path, plan: Plan, parameters: dict[str, Any], console: Console, **options: Any
) -> RunResult:
    """Run the pipeline; SIGINT and SIGTERM stop it in order, a second one ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return await run_pipeline(sandbox, plan, parameters, console, stop, **options)


async def run_pipeline(
    sandbox: Path,
    plan: Plan,
    parameters: dict[str, Any],
    console: Console,
    stop: asyncio.Event,
    *,
    cached: bool = True,
    timeout: float = 3600.0,  # noqa: ASYNC109 - a setting of the run, which ends in order
) -> RunResult:
    """Run a pipeline in the sandbox whose folder is `sandbox`, until its end or until `stop` is set.

    Raises ApiError if the API server does not take the run, or its end.
    """
    progress = Progress(console)
    kubeconfig = sandbox / "kube" / "workflow-controller.kubeconfig"
    async with Client.from_kubeconfig(str(kubeconfig), user_agent="memopod-run") as client:
        run = Run(client, plan, parameters, cached=cached, timeout=timeout, on_change=progress.changed)
        progress.follow(run)
        with progress.shown():
            return await run.execute(stop)


def show_result(console: Console, sandbox: Path, result: RunResult) -> None:
    """Print what came of a run: its tasks' decisions, its outputs, and why it failed."""
    console.print(summary(result), highlight=False, markup=False)
    for task in result.tasks:
        if task.decision == "reused":
            console.print(f"  {task.name}: reused ({task.reason})", highlight=False, markup=False)
    for name, value in result.outputs.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        console.print(f"  {name} = {shown}", highlight=False, markup=False, soft_wrap=True)
    for task in result.tasks:
        if task.state != "Failed":
            continue
        typer.echo(f"task {task.name!r} failed: {task.message}", err=True)
        tail = log_tail(sandbox, task.pod_uid)
        if tail:
            typer.echo(f"the end of its log ({sandbox / 'pods' / task.pod_uid / 'main.log'}):", err=True)
            for line in tail:
                typer.echo(f"  {line}", err=True)
    if result.stopped:
        typer.echo(f"the run was ended: {result.message}", err=True)
