"""`memopod why`: why a step ran, or was reused."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_server.entries import EntriesUnavailable
from cache_server.why import Difference, Explanation, Unknown, Why
from memopod.cli.cache_kept import CannotReach
from memopod.cli.cache_options import JsonOption, ServerSource, Source, StateOption, reads_entries
from memopod.cli.cache_source import open_earlier
from memopod.cli.ending import fail
from memopod.kube import ApiError, Client, ConfigurationError
from memopod.steps.key import KeyRules
from memopod.steps.reasons import REFUSALS

_KEY = re.compile(r"[0-9a-f]{64}")
_SHORT_ID = 8
_SHOWN = 8
"""Causes on a terminal: what stands further down follows from those above, or from an old entry."""


@reads_entries
def why(
    source: Source | ServerSource,
    target: Annotated[str, typer.Argument(metavar="POD|KEY", help="A Pod's name, or an entry's key.")],
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Default: for a Pod the kubeconfig context's, for a key any."),
    ] = None,
    state: StateOption = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            "--kubeconfig",
            metavar="FILE",
            help="The cluster. Default: that of --state, $KUBECONFIG, ~/.kube/config.",
        ),
    ] = None,
    ignored_sidecar: Annotated[
        list[str] | None,
        typer.Option("--ignored-sidecar", help="As the cache server's --ignored-sidecars; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a step ran or was reused: what was decided, and what differs from the nearest earlier run.

    The Pod is read from the cluster, the earlier runs from the entries: their database, or a cache server's
    API. Of a Pod that is gone
    the entry that it left is explained. Old and new values are shown where they can hold no secret:
    images, mounts, users, names; never parameters, arguments, scripts or values of variables. An old value
    needs the Pod of the earlier run; of its image the digest that ran is known without.

    Examples:
      - memopod why train-x7k2p-fit-1234567890 -n pipelines
      - memopod why 3f2a91c0...(64 digits) --json
    """
    path = kubeconfig or (state / "kubeconfig" if state else None)
    rules = KeyRules(ignored_containers=frozenset(ignored_sidecar or ()))
    try:
        found = asyncio.run(_explain(target, namespace, source, path, rules))
    except Unknown as error:
        fail(str(error))
    except ConfigurationError as error:
        fail(f"{error}; give --kubeconfig FILE, or an entry's key")
    except (ApiError, CannotReach, EntriesUnavailable, OSError, ValueError) as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(_document(found), indent=2, ensure_ascii=False))
    else:
        _show(found, source.flags)


async def _explain(
    target: str,
    namespace: str | None,
    source: Source | ServerSource,
    kubeconfig: Path | None,
    rules: KeyRules,
) -> Explanation:
    async with AsyncExitStack() as stack:
        client = await _client(stack, kubeconfig, needed=_KEY.fullmatch(target) is None)
        explainer = Why(await stack.enter_async_context(open_earlier(source)), client, rules)
        if _KEY.fullmatch(target):
            return await explainer.key(target, namespace)
        return await explainer.pod(namespace or _namespace(client), target)


async def _client(stack: AsyncExitStack, kubeconfig: Path | None, *, needed: bool) -> Client | None:
    """The cluster to ask; None where none is configured, and it is not needed."""
    path = str(kubeconfig) if kubeconfig else None
    try:
        return await stack.enter_async_context(Client.from_kubeconfig(path, user_agent="memopod-why"))
    except ConfigurationError:
        if needed:
            raise
        return None


def _namespace(client: Client | None) -> str:
    return client.default_namespace() if client else "default"


def _show(found: Explanation, flags: str) -> None:
    console = Console()
    console.print(Text.assemble((found.pod, "bold"), f"  {found.namespace}, template {found.template}"))
    for line in _headline(found):
        console.print(Text(line))
    if found.nearest is None:
        if found.entry is None and found.template and found.reason not in REFUSALS:
            console.print("no earlier run of this template has left an entry")
    else:
        near = found.nearest
        told = f"  {near.finished_at:%Y-%m-%d %H:%M:%SZ}, entry {near.id[:_SHORT_ID]}"
        console.print(Text.assemble("nearest earlier run: ", (near.pod_name, "bold"), told))
        console.print(_table(found) if found.differences else Text("nothing differs from it"))
        if len(found.differences) > _SHOWN:
            console.print(f"and {len(found.differences) - _SHOWN} more; see --json")
        if not found.whole:
            console.print("ConfigMaps and input artifacts are not compared: the Pod does not tell of them")
    entry = found.nearest.id if found.nearest else found.entry
    if entry:
        typer.echo(f"next: memopod cache show {entry[:_SHORT_ID]}{flags}", err=True)


def _headline(found: Explanation) -> Iterator[str]:
    if found.decision == "reuse":
        yield f"reused: {found.sentence} ({found.source_pod or 'an earlier run'})"
        if found.source_logs:
            yield f"its log: {found.source_logs}"
    elif found.decision:
        yield f"ran: {found.sentence} ({found.reason})"
    elif found.waits_for:
        yield f"waits for {found.waits_for}, which runs the identical step"
    elif found.entry:
        yield f"an entry has its key: {found.entry[:_SHORT_ID]}"
    else:
        yield "not decided yet, or never held"


def _table(found: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "WHAT DIFFERS", "EARLIER", "NOW"):
        table.add_column(column, overflow="fold")
    for number, difference in enumerate(found.differences[:_SHOWN], start=1):
        old, new = _values(difference)
        style = "bold" if number == 1 else ""
        table.add_row(f"{number}.", Text(difference.cause.sentence, style), Text(old), Text(new))
    return table


def _values(difference: Difference) -> tuple[str, str]:
    return difference.old or "(not known)", difference.new or "(not shown)"


def _document(found: Explanation) -> dict[str, Any]:
    near = found.nearest
    return {
        "namespace": found.namespace,
        "pod": found.pod,
        "template": found.template,
        "decision": found.decision or None,
        "reason": found.reason or None,
        "meaning": found.sentence or None,
        "key": found.key or None,
        "entry": found.entry,
        "source_pod": found.source_pod,
        "waits_for": found.waits_for,
        "source_logs": found.source_logs,
        "complete": found.whole,
        "nearest": near
        and {
            "entry": near.id,
            "pod": near.pod_name,
            "workflow": near.workflow,
            "key": near.entry_key,
            "finished_at": near.finished_at.isoformat().replace("+00:00", "Z"),
        },
        "differences": [
            {**asdict(difference.cause), "old": difference.old, "new": difference.new}
            for difference in found.differences
        ],
    }
