"""`memopod preview`: what would be reused, and what would run, without running anything."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_server.entries import EntriesUnavailable
from cache_server.preview import REUSE, RUN, UNKNOWN, Preview, Verdict
from memopod.cli.cache_kept import CannotReach
from memopod.cli.cache_options import JsonOption, ServerSource, Source, reads_entries
from memopod.cli.cache_source import open_earlier
from memopod.cli.ending import fail
from memopod.sandbox.pipelines import PipelineError, parse_parameters, read_pipeline
from memopod.sandbox.runner import pipeline_steps
from memopod.steps.manifest import BadManifest, Steps, planned_steps

_KINDS = ("Workflow", "WorkflowTemplate", "ClusterWorkflowTemplate", "CronWorkflow")
_STYLES = {REUSE: "green", RUN: "yellow", UNKNOWN: "dim"}
_LARGEST = 16 * 1024 * 1024


@reads_entries
def preview(
    source: Source | ServerSource,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A pipeline (kfp IR 2.1.0) or an Argo Workflow, YAML or JSON."),
    ],
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", help="Where it would run. Default: the manifest's own, else pipelines."
        ),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter of the run; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say for each step of a workflow or pipeline whether it would be reused or run now, and why.

    Nothing is run and nothing is written: the file is compared with the entries, in their
    database or by a cache server's API. `unknown`
    is what depends on the outputs of a step that would run.

    Its limits. A step is compared by what the file says of it: what only its Pod tells (defaults, what
    webhooks inject, the effect of podSpecPatch) and the contents of ConfigMaps and of input artifacts from
    elsewhere are taken to be as they were; outputs are not looked for in the object store; of the limits in
    time only the step's and the entry's own are known here. The template's newest entry tells whether Argo
    keeps input parameters in it (before 3.6), where they count even if nothing uses them. `when` is not
    evaluated; withParam, withSequence, expressions, inline templates and templates of other objects are
    not followed. A pipeline file is compared with what `memopod run` has left; Kubeflow Pipelines v2 has a
    cache of its own.

    Examples:
      - memopod preview pipeline.yaml -p message=hello
      - memopod preview workflow.yaml -n argo --database sqlite:////var/lib/memopod/cache.db --json
    """
    try:
        steps, home = _read(file, parameter or [])
        verdicts = asyncio.run(_judge(source, namespace or home or "pipelines", steps))
    except (BadManifest, PipelineError) as error:
        fail(f"{file}: {error}")
    except (CannotReach, EntriesUnavailable, OSError, ValueError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps([_document(verdict) for verdict in verdicts], indent=2, ensure_ascii=False))
    else:
        _show(verdicts)


def _read(file: Path, parameters: list[str]) -> tuple[Steps, str | None]:
    """The steps of a file of either kind, and the namespace that it names."""
    if file.stat().st_size > _LARGEST:
        raise BadManifest(f"expected {_LARGEST >> 20} MiB at most")
    try:
        documents = [document for document in yaml.safe_load_all(file.read_text()) if document is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadManifest("expected YAML or JSON") from error
    manifest = next((d for d in documents if isinstance(d, dict) and d.get("kind") in _KINDS), None)
    if manifest is None:
        plan = read_pipeline(file)
        return pipeline_steps(plan, parse_parameters(parameters, plan.parameters)), None
    pairs = dict(pair.partition("=")[::2] for pair in parameters)
    try:
        return planned_steps(manifest, pairs), (manifest.get("metadata") or {}).get("namespace")
    except (AttributeError, KeyError, TypeError) as error:
        raise BadManifest(f"expected a {manifest['kind']}, got something of another shape") from error


async def _judge(source: Source | ServerSource, namespace: str, steps: Steps) -> list[Verdict]:
    async with open_earlier(source) as entries:
        try:
            return await Preview(entries, namespace).judge(steps)
        except (AttributeError, KeyError, TypeError) as error:
            raise BadManifest("a template of the manifest is of another shape than Argo's") from error


def _show(verdicts: Sequence[Verdict]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("STEP", "WOULD", "WHY"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        assumed = f" (if {', '.join(verdict.assumed)})" if verdict.assumed else ""
        table.add_row(
            Text(verdict.path), Text(verdict.verdict, _STYLES[verdict.verdict]), Text(verdict.why + assumed)
        )
    console = Console()
    console.print(table)
    counted = Counter(verdict.verdict for verdict in verdicts)
    saved = sum(v.entry.took.total_seconds() for v in verdicts if v.verdict == REUSE and v.entry)
    told = ", ".join(f"{counted[kind]} {kind}" for kind in (REUSE, RUN, UNKNOWN) if counted[kind])
    console.print(Text(f"{told or 'no steps'}; reuse would save {saved:.3g} s", "bold"))
    explained = next((v for v in verdicts if v.verdict == RUN and v.entry), None)
    if explained and explained.entry:
        typer.echo(f"next: memopod why {explained.entry.key}", err=True)


def _document(verdict: Verdict) -> dict[str, Any]:
    return {
        "step": verdict.path,
        "verdict": verdict.verdict,
        "why": verdict.why,
        "entry": verdict.entry.id if verdict.entry else None,
        "pod": verdict.entry.pod_name if verdict.entry else None,
        "causes": [cause.sentence for cause in verdict.causes],
        "assumed": list(verdict.assumed),
    }
