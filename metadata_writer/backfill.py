"""Records workflows that have ended from what their objects alone say: those of a cluster, or of a file.

The same records as the writer's own, so it can be stopped and begun again at any time, and beside a writer:
what is in the store already is not put again, and a Pod's word is not overruled.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
import yaml

from memopod.kube import WORKFLOWS, Client
from memopod.mlmd import StoreClient, StoreError
from memopod.steps.outputs import NodesOffloaded, read_outputs, workflow_nodes
from metadata_writer import reader, templates
from metadata_writer.recorder import Recorder, Wish
from metadata_writer.records import StepRecord
from metadata_writer.skipping import node_skip_reason

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


async def from_cluster(client: Client, namespace: str | None) -> AsyncIterator[Mapping[str, Any]]:
    """The Workflows of a cluster or a namespace, page by page. Raises ApiError."""
    async for page in client.pages(WORKFLOWS, namespace=namespace):
        for workflow in page["items"]:
            yield workflow


def from_file(path: Path) -> Iterator[Mapping[str, Any]]:
    """The Workflows of a file: one or many, a List, JSON lines or YAML documents.

    `kubectl get workflows -A -o json` and `argo get -o yaml` write such. Raises OSError and Unreadable.
    """
    text = path.read_text()
    for document in _documents(text, path):
        items = document.get("items") if str(document.get("kind", "")).endswith("List") else [document]
        for item in items or ():
            if not isinstance(item, dict) or "uid" not in (item.get("metadata") or {}):
                raise Unreadable(f"{path}: expected Workflows with metadata.uid, as kubectl writes them")
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
    for document in parsed:
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
        if node.get("type") == "Pod"
        and node.get("phase") not in ("Pending", "Skipped", "Omitted")
        and node_skip_reason(workflow, node) is None
    ]
    return sorted(records, key=lambda record: float(record.custom.get("started_at") or 0))


async def backfill(
    workflows: AsyncIterator[Mapping[str, Any]], store: StoreClient, told: Callable[[Progress], None]
) -> Progress:
    """Record all of them; `told` hears of progress. Raises StoreError when the store goes on refusing."""
    recorder, progress = Recorder(store), Progress()
    waiting: list[StepRecord] = []
    async for workflow in workflows:
        progress.workflows += 1
        try:
            steps = steps_of(workflow)
        except NodesOffloaded:
            progress.offloaded += 1
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
        for record, result in zip(left, await recorder.record_all([Wish(r) for r in left]), strict=True):
            if isinstance(result, StoreError):
                away = result.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if not away or asyncio.get_running_loop().time() > end:
                    raise result
                again.append(record)
                continue
            progress.steps += 1
            progress.written += result.written
            progress.unresolved += bool(result.unresolved)
        left = again
        if left:
            await asyncio.sleep(_PAUSE)
