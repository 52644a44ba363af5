"""Records workflows that have ended from what their objects alone say: those of a cluster, or of a file.

The same records as the writer's own, so it can be stopped and begun again at any time, and beside a writer:
what is in the store already is not put again, and a Pod's word is not overruled.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from memopod.kube import WORKFLOWS, Client
from memopod.mlmd import StoreClient, StoreUnavailable
from memopod.steps.outputs import NodesOffloaded, read_outputs, workflow_nodes
from metadata_writer import reader, templates
from metadata_writer.attempts import said
from metadata_writer.recorder import Outcome, Recorder, Wish
from metadata_writer.records import StepRecord
from metadata_writer.skipping import node_skip_reason
from metadata_writer.states import is_carried_over, is_step

_BATCH: Final = 200
"""Steps that are put together."""
_PATIENCE: Final = 60.0
"""Seconds to wait for a store that is away before giving up."""
_PAUSE: Final = 1.0


class Unreadable(ValueError):
    """A file holds no Workflows."""


@dataclass(slots=True)
class Progress:
    """Counts so far: `written` steps were not (all) in the store before."""

    workflows: int = 0
    running: int = 0
    offloaded: int = 0
    steps: int = 0
    written: int = 0
    unresolved: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Names of Workflows whose status is none."""
    refused: list[str] = field(default_factory=list)
    """Steps that the store would not take, and its word for it."""


async def from_cluster(client: Client, namespace: str | None) -> AsyncIterator[Mapping[str, Any]]:
    """The Workflows of a cluster or a namespace, page by page. Raises ApiError."""
    async for page in client.pages(WORKFLOWS, namespace=namespace):
        for workflow in page["items"]:
            yield workflow


def from_file(path: Path) -> Iterator[Mapping[str, Any]]:
    """The Workflows of a file: one or many, a List, JSON lines or YAML documents.

    `kubectl get workflows -A -o json`, `argo list -o json` and `argo archive get -o yaml` write such. Raises
    OSError and Unreadable.
    """
    for document in _documents(path.read_text(), path):
        items = document.get("items") if "items" in document else [document]
        for item in items or ():
            if not isinstance(item, dict) or "uid" not in (item.get("metadata") or {}):
                raise Unreadable(f"{path}: expected Workflows with metadata.uid, as kubectl writes them")
            if item.get("kind", "Workflow") != "Workflow":  # in lists of Argo's own the kind is left out
                raise Unreadable(f"{path}: expected Workflows, got a {item['kind']}")
            yield item


def _documents(text: str, path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        parsed: list[Any] = [msgspec.json.decode(text)]
    except msgspec.DecodeError:
        try:
            parsed = [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
        except msgspec.DecodeError:
            try:
                parsed = [d for d in yaml.safe_load_all(text) if d is not None]
            except yaml.YAMLError as error:
                raise Unreadable(f"{path}: expected JSON, JSON lines or YAML") from error
    for document in parsed[0] if len(parsed) == 1 and isinstance(parsed[0], list) else parsed:
        if not isinstance(document, dict):
            raise Unreadable(f"{path}: expected Workflows, got {type(document).__name__}")
        yield document


def steps_of(workflow: Mapping[str, Any]) -> list[StepRecord]:
    """What a Workflow that has ended says of its steps, first begun first; none while it runs.

    Raises NodesOffloaded where its nodes are in Argo's own database, ValueError where they are broken.
    """
    if (workflow.get("status") or {}).get("phase") not in ("Succeeded", "Failed", "Error"):
        return []
    repository = templates.repository(workflow)
    records = [
        reader.read_node(
            workflow, node, outputs=read_outputs(node.get("outputs") or {}, repository), ended=True
        )
        for node in workflow_nodes(workflow).values()
        if is_step(node)
        and (is_carried_over(node) or node.get("phase") not in ("Pending", "Skipped", "Omitted"))
        and node_skip_reason(workflow, node) is None
    ]
    return sorted(records, key=lambda record: float(record.custom.get("started_at") or 0))


async def backfill(
    workflows: AsyncIterator[Mapping[str, Any]], store: StoreClient, told: Callable[[Progress], None]
) -> Progress:
    """Record all of them; `told` hears of progress. What cannot be recorded stops no other.

    Raises StoreUnavailable when the store stays away.
    """
    recorder, progress = Recorder(store), Progress()
    waiting: list[StepRecord] = []
    async for workflow in workflows:
        progress.workflows += 1
        try:
            steps = steps_of(workflow)
        except NodesOffloaded:
            progress.offloaded += 1
            continue
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # nobody validates a status
            progress.unreadable.append(_named(workflow))
            continue
        progress.running += not steps and (workflow.get("status") or {}).get("finishedAt") is None
        waiting += steps
        if len(waiting) >= _BATCH:
            await _put(recorder, waiting, progress)
            waiting = []
        told(progress)
    await _put(recorder, waiting, progress)
    told(progress)
    return progress


async def _put(recorder: Recorder, records: list[StepRecord], progress: Progress) -> None:
    left = records
    end = asyncio.get_running_loop().time() + _PATIENCE
    while left:
        again = []
        for record, result in await _record(recorder, left):
            if isinstance(result, StoreUnavailable):
                if asyncio.get_running_loop().time() > end:
                    raise result
                again.append(record)
            elif isinstance(result, Exception):
                progress.refused.append(f"{record.external_id}: {said(result)}")
            else:
                progress.steps += 1
                progress.written += result.written
                progress.unresolved += bool(result.unresolved)
        left = again
        if left:
            await asyncio.sleep(_PAUSE)


async def _record(
    recorder: Recorder, records: list[StepRecord]
) -> list[tuple[StepRecord, Outcome | Exception]]:
    try:
        results = await recorder.record_all([Wish(record) for record in records])
    except Exception as error:  # noqa: BLE001 (one step that nobody foresaw must not stop the others)
        if len(records) == 1:
            return [(records[0], error)]
        return [pair for record in records for pair in await _record(recorder, [record])]
    return list(zip(records, results, strict=True))


def _named(workflow: Mapping[str, Any]) -> str:
    metadata = workflow["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
