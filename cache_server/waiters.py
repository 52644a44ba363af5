"""Writes on a Pod that waits for an identical step: the annotation that says so, and its time."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Counter, Gauge

from cache_server.waiting import RENEWAL, Execution
from memopod.kube import PODS, Client, Conflict, Invalid, NotFound, set_metadata_ops
from memopod.steps import names
from memopod.steps.times import to_text

WAITS = Counter("memopod_waits_total", "Waits for an identical step, by how they ended.", ["end"])
WAITING = Gauge("memopod_waiting", "Pods that wait for an identical step now.")
_CALL_SECONDS = 1.0
"""As for lifting a gate: a leader gives up 1 s before another may take over."""

Pod = Mapping[str, Any]


async def begin(client: Client, pod: Pod, run: Execution) -> bool:
    """Let a held Pod wait for `run`: one patch, on the Pod as it was read. Raises ApiError.

    False if the Pod changed in between; then somebody looks at it again.
    """
    return await _mark(client, pod, {names.WAITS_FOR: run.name})


async def renew(client: Client, pod: Pod) -> bool:
    """Give a waiter more time: one patch, on the Pod as it was read. Raises ApiError."""
    return await _mark(client, pod, {})


async def _mark(client: Client, pod: Pod, marks: Mapping[str, str]) -> bool:
    metadata = pod["metadata"]
    until = to_text(datetime.now(UTC) + RENEWAL)
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        *set_metadata_ops(metadata, annotations={**marks, names.HOLD_UNTIL: until}),
    ]
    try:
        await client.patch(
            PODS, metadata["name"], patch, namespace=metadata["namespace"], timeout=_CALL_SECONDS
        )
    except (Conflict, Invalid, NotFound):
        return False
    return True
