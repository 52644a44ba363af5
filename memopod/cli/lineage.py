"""`memopod lineage`: ask the metadata store what ran, and where a result came from."""

import asyncio
import json
import os
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer
from rich.console import Console, RenderableType

from memopod import lineage
from memopod.cli.ending import fail
from memopod.lineage import render
from memopod.mlmd import StoreClient, StoreError, StoreUnavailable
from memopod.sandbox.errors import SandboxError
from memopod.sandbox.state import DEFAULT as DEFAULT_STATE
from memopod.sandbox.state import read_description

VARIABLE = "MEMOPOD_STORE"
"""Environment variable with the address of the store or of its Envoy."""
DEFAULT_ADDRESS = "localhost:9090"
"""Envoy's port, as upstream's manifests and a `kubectl port-forward` of its Service have it."""

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_TIMEOUT = 30.0
"""Seconds that one read may take: a page of a large store, through a slow network."""
_PIPED_WIDTH = 4096
"""Columns where nobody watches: a row stays on a line, for `grep` and `less -S`."""

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help=(
        "Ask the metadata store what ran, and where a result came from.\n\n"
        "The store is asked through Envoy or directly: at --address HOST:PORT, in the sandbox of --state "
        f"DIR, at the address in {VARIABLE}, in the sandbox in {DEFAULT_STATE}, or at {DEFAULT_ADDRESS}; "
        "the first of these that there is.\n\n"
        "A node is named run/step, run/step:output, execution:ID, artifact:ID, or by an artifact's uri."
    ),
    epilog=(
        "Examples:\n\n"
        "memopod lineage runs\n\n"
        "memopod lineage show my-pipeline-x7k2q\n\n"
        "memopod lineage up my-pipeline-x7k2q/comp:Output\n\n"
        "memopod lineage down artifact:7 --depth 3 -o mermaid"
    ),
)


class Form(StrEnum):
    """How a graph is written."""

    TREE = "tree"
    TABLE = "table"
    JSON = "json"
    DOT = "dot"
    MERMAID = "mermaid"


class ListForm(StrEnum):
    """How a list is written."""

    TABLE = "table"
    JSON = "json"


AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help=f"The store, or its Envoy (or set {VARIABLE})."),
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="State folder of a sandbox: ask its store."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as -o json.")]
FormOption = Annotated[Form, typer.Option("-o", "--output", help="How the answer is written.")]
DepthOption = Annotated[int, typer.Option("--depth", min=1, help="How many steps are followed at most.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="How many nodes are taken in at most.")]
SameValuesOption = Annotated[
    bool,
    typer.Option(
        "--same-values/--recorded-only",
        help="Whether to add steps whose parameter has the same value: a hint, no record.",
    ),
]
NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="run/step, run/step:output, execution:ID, artifact:ID or a uri.")
]


@dataclass(frozen=True, slots=True)
class Target:
    """Which store is asked. `flags` name it again on a command line; `tried` says how it was chosen."""

    address: str
    flags: str = ""
    tried: str = ""


@app.command(epilog="Example: memopod lineage runs --pipeline my-pipeline --limit 5")
def runs(
    address: AddressOption = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many runs are listed at most.")] = 20,
    pipeline: Annotated[
        str, typer.Option("--pipeline", metavar="NAME", help="Only runs whose names start with this.")
    ] = "",
    output: Annotated[
        ListForm, typer.Option("-o", "--output", help="How the answer is written.")
    ] = ListForm.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List the latest runs, newest first."""
    target = find_target(address, state)
    listed = _ask(target, lambda client: lineage.runs(client, limit, pipeline))
    if as_json or output is ListForm.JSON:
        _print_json(listed)
        return
    if not listed.runs:
        typer.echo("no runs are recorded" + (f" whose names start with {pipeline!r}" if pipeline else ""))
        _next("memopod run PIPELINE.yaml", Target(""))
        return
    _print(render.runs_table(listed))
    _next(f"memopod lineage show {shlex.quote(listed.runs[0].run)}", target)


@app.command(epilog="Example: memopod lineage show my-pipeline-x7k2q -o table")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run (of its Workflow).")],
    address: AddressOption = None,
    state: StateOption = None,
    output: FormOption = Form.TREE,
    as_json: JsonOption = False,
) -> None:
    """Show one run: its steps, their inputs and outputs, and what was reused from where."""
    target = find_target(address, state)
    report = _ask(target, lambda client: lineage.show(client, run))
    if as_json or output is Form.JSON:
        _print_json(report)
    elif output is Form.TREE:
        _print(render.run_tree(report))
    elif output is Form.TABLE:
        _print(render.run_table(report))
    else:
        _print_diagram(lineage.as_graph(report), output)
    if output in {Form.TREE, Form.TABLE} and not as_json:
        _next(f"memopod lineage {_question(report)}", target)


@app.command(epilog="Example: memopod lineage up my-pipeline-x7k2q/comp:Output")
def up(
    node: NodeArgument,
    address: AddressOption = None,
    state: StateOption = None,
    depth: DepthOption = lineage.DEPTH,
    limit: LimitOption = lineage.LIMIT,
    same_values: SameValuesOption = True,
    output: FormOption = Form.TREE,
    as_json: JsonOption = False,
) -> None:
    """Show where a node comes from: what produced it, from what, and so on."""
    target = find_target(address, state)
    graph = _ask(target, lambda client: lineage.up(client, node, depth, limit=limit, same_values=same_values))
    _print_graph(graph, Form.JSON if as_json else output, f"memopod lineage down {shlex.quote(node)}", target)


@app.command(epilog="Example: memopod lineage down artifact:7 --depth 3")
def down(
    node: NodeArgument,
    address: AddressOption = None,
    state: StateOption = None,
    depth: DepthOption = lineage.DEPTH,
    limit: LimitOption = lineage.LIMIT,
    same_values: SameValuesOption = True,
    output: FormOption = Form.TREE,
    as_json: JsonOption = False,
) -> None:
    """Show what depends on a node: who used or reused it, what that produced, and so on."""
    target = find_target(address, state)
    graph = _ask(
        target, lambda client: lineage.down(client, node, depth, limit=limit, same_values=same_values)
    )
    _print_graph(graph, Form.JSON if as_json else output, f"memopod lineage up {shlex.quote(node)}", target)


def find_target(address: str | None, state: Path | None) -> Target:
    """Which store to ask, from the options, the environment and the folder one is in.

    Ends the command for options that say nothing usable.
    """
    if address and state:
        raise typer.BadParameter("give --address or --state, not both")
    if address:
        return Target(_checked(address, "--address"), f" --address {shlex.quote(address)}")
    if state:
        try:
            return Target(_of_sandbox(state), f" --state {shlex.quote(str(state))}")
        except SandboxError as error:
            fail(str(error))
    if from_environment := os.environ.get(VARIABLE):
        return Target(_checked(from_environment, VARIABLE), tried=f"from {VARIABLE}")
    try:
        return Target(_of_sandbox(DEFAULT_STATE), tried=f"of the sandbox in {DEFAULT_STATE}")
    except SandboxError:
        return Target(
            DEFAULT_ADDRESS,
            tried=f"the default, as there is no --address, no --state, no {VARIABLE}, "
            f"and no sandbox runs in {DEFAULT_STATE}",
        )


def _checked(address: str, origin: str) -> str:
    match = _ADDRESS.fullmatch(address.strip())
    if match is None or not 0 < int(match.group(2)) < 65536:
        raise typer.BadParameter(f"{origin}: expected HOST:PORT, got {address!r}")
    return address.strip()


def _of_sandbox(state: Path) -> str:
    """The address of the Envoy of the sandbox that runs in `state`. Raises SandboxError if none does."""
    try:
        address = str(read_description(state)["envoy"]["address"])
    except (ValueError, KeyError, TypeError):
        fail(f"the sandbox in {state} describes no Envoy; start it again, or give --address HOST:PORT")
    return _checked(address, str(state))


def _ask(target: Target, question: Callable[[StoreClient], Awaitable[T]]) -> T:
    async def ask() -> T:
        async with StoreClient(target.address, timeout=_TIMEOUT) as client:
            return await question(client)

    try:
        return asyncio.run(ask())
    except lineage.LineageError as error:
        fail(str(error))
    except StoreUnavailable as error:
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            fail(f"the metadata store at {target.address} did not answer within {_TIMEOUT:.0f} s; try again")
        chosen = f" ({target.tried})" if target.tried else ""
        fail(
            f"no metadata store answers at {target.address}{chosen}; start `memopod sandbox up`, "
            "or give --address HOST:PORT"
        )
    except StoreError as error:
        if error.code is grpc.StatusCode.UNIMPLEMENTED:
            fail(f"what answers at {target.address} is no metadata store; give --address HOST:PORT of one")
        fail(f"the store at {target.address} refused: {error}")


def _question(report: lineage.RunReport) -> str:
    """What one would ask next about a run: where its last output comes from."""
    for step in reversed(report.steps):
        names = [*step.execution.outputs, *(port.name for port in step.outputs)]
        if names:
            return f"up {shlex.quote(f'{step.execution.title}:{names[0]}')}"
    return f"up {shlex.quote(report.steps[-1].execution.title)}" if report.steps else "runs"


def _print_graph(graph: lineage.Graph, form: Form, following: str, target: Target) -> None:
    if form is Form.JSON:
        _print_json(graph)
    elif form in {Form.DOT, Form.MERMAID}:
        _print_diagram(graph, form)
    else:
        _print(render.tree(graph) if form is Form.TREE else render.table(graph))
        _next(following, target)


def _print_diagram(graph: lineage.Graph, form: Form) -> None:
    typer.echo(render.dot(graph) if form is Form.DOT else render.mermaid(graph), nl=False)


def _print_json(answer: Any) -> None:
    typer.echo(json.dumps(render.as_document(answer), indent=2, ensure_ascii=False))


def _print(answer: RenderableType) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_WIDTH)
    console.print(answer)


def _next(command: str, target: Target) -> None:
    """One line that says what could follow; apart from the answer, so that a pipe does not get it."""
    typer.echo(f"next: {command}{target.flags}", err=True)
