"""Writes on a held Pod: lifting its gate, and the way forward once a WorkflowTaskResult of ours exists.

Whoever finds a WorkflowTaskResult of memopod's goes forward: the Pod is finished, whatever it takes.
No gate is ever lifted while one exists.
"""

import asyncio
import json
import random
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import structlog

from memopod.kube import (
    PODS,
    TASK_RESULTS,
    ApiError,
    Client,
    Conflict,
    Invalid,
    NotFound,
    set_metadata_ops,
)  # fmt: skip
from memopod.steps import Step, names
from memopod.steps.finish import finished_patch
from memopod.steps.identity import Identity
from memopod.steps.outputs import is_of, is_ours
from memopod.steps.times import to_seconds_text

_log = structlog.get_logger()
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_CALL_SECONDS = 2.0
_RELEASE_SECONDS = 1.0
"""Deadline of lifting a gate: a leader gives up 1 s before another may take over, which could by then
have written a WorkflowTaskResult for this Pod."""
_PATIENCE_SECONDS = 60.0
"""How long one look at a Pod tries to finish it; then others get their turn, and it is looked at again."""
_COMPONENTS_LIMIT = 12_288
"""Bytes of the components' digests that a Pod gets at most: admission left 16 KiB for all of ours."""
_FINISHED = ("Succeeded", "Failed")

Pod = Mapping[str, Any]


def is_held(pod: Pod) -> bool:
    """Whether the Pod still waits behind memopod's gate."""
    gates = pod["spec"].get("schedulingGates") or ()
    phase = (pod.get("status") or {}).get("phase")
    return phase not in _FINISHED and any(gate.get("name") == names.GATE for gate in gates)


async def own_result(client: Client, step: Step) -> Mapping[str, Any] | None:
    """The WorkflowTaskResult of this step if memopod wrote it. Raises ApiError when that is unknown."""
    result = await marked_result(client, step)
    return result if result is not None and is_of(result, step.workflow_uid) else None


async def marked_result(client: Client, step: Step) -> Mapping[str, Any] | None:
    """A WorkflowTaskResult in the step's place that memopod wrote, and be it for an earlier Workflow of the
    same name. Raises ApiError when that is unknown.
    """
    try:
        result = await client.get(TASK_RESULTS, step.node_id, namespace=step.namespace, timeout=_CALL_SECONDS)
    except NotFound:
        return None
    return result if is_ours(result) else None


async def go_forward(
    client: Client, pod: Pod, result: Mapping[str, Any], *, slots: asyncio.Semaphore | None = None
) -> bool:
    """Finish a Pod whose WorkflowTaskResult is ours; True if it is finished, be it by another process.

    False if it is gone, or was released or ended otherwise.

    Tries for a minute, whatever stands in the way, and raises the last ApiError then. Whoever looks at
    the Pod next goes on from here: this leader, the next one, a sweeper or the janitor. `slots` bounds the
    calls of many; a Pod that cannot be finished holds none while it pauses.
    """
    pause = _FIRST_PAUSE
    deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while True:
        try:
            if not is_held(pod):
                return (pod["metadata"].get("labels") or {}).get(names.STEP_LABEL) == names.REUSED
            async with slots or nullcontext():
                await _finish_once(client, pod, result)
            return True
        except NotFound:
            return False
        except ApiError as error:
            if asyncio.get_running_loop().time() > deadline:
                raise
            _log.info("finishing a Pod again", pod=pod["metadata"]["name"], cause=error.reason)
        await asyncio.sleep(pause * (1 + random.random()))  # noqa: S311 (jitter)
        pause = min(pause * 2, _LONGEST_PAUSE)
        async with slots or nullcontext():
            current = await _read(client, pod)
        if current is None:
            return False
        pod = current or pod


async def _finish_once(client: Client, pod: Pod, result: Mapping[str, Any]) -> None:
    patch = finished_patch(pod, result, at=to_seconds_text(datetime.now(UTC)))
    metadata = pod["metadata"]
    await client.patch(
        PODS, metadata["name"], patch,
        namespace=metadata["namespace"], subresource="status", timeout=_CALL_SECONDS,
    )  # fmt: skip


async def _read(client: Client, pod: Pod) -> dict[str, Any] | None:
    """The Pod as it is now; None if it is gone (a namesake with another UID is not it), {} if unknown."""
    metadata = pod["metadata"]
    try:
        current = await client.get(
            PODS, metadata["name"], namespace=metadata["namespace"], timeout=_CALL_SECONDS
        )
    except NotFound:
        return None
    except ApiError:
        return {}
    return current if current["metadata"]["uid"] == metadata["uid"] else None


async def release(
    client: Client, pod: Pod, *, reason: str, identity: Identity | None = None, audits: str | None = None
) -> bool:
    """Lift the gate: one patch, on the Pod as it was read. Raises ApiError.

    True if the Pod may run now, False if it changed in between (then somebody looks at it again).
    Other controllers' gates stay.
    """
    metadata = pod["metadata"]
    gates = pod["spec"].get("schedulingGates") or []
    position = next((i for i, gate in enumerate(gates) if gate.get("name") == names.GATE), None)
    if position is None:
        return True
    marks = {names.DECISION: names.RUN, names.REASON: reason}
    if identity is not None:
        marks[names.INPUTS] = identity.evidence
        marks[names.ENTRY_KEY] = identity.key.digest
        components = json.dumps(identity.key.components, separators=(",", ":"))
        if len(components) <= _COMPONENTS_LIMIT:
            marks[names.COMPONENTS] = components
    if audits is not None:
        marks[names.AUDITS] = audits
    gate = f"/spec/schedulingGates/{position}"
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        {"op": "test", "path": f"{gate}/name", "value": names.GATE},
        {"op": "remove", "path": gate},
        *set_metadata_ops(metadata, labels={names.STEP_LABEL: names.RELEASED}, annotations=marks),
    ]
    try:
        await client.patch(
            PODS, metadata["name"], patch, namespace=metadata["namespace"], timeout=_RELEASE_SECONDS
        )
    except (Conflict, Invalid, NotFound):
        # Gone, or changed: a failed `test` is 422, a write that overtook this one 409.
        return False
    return True
