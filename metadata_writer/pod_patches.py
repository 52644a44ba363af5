"""What is patched on the Pod of a step that is recorded, in one patch: labels on, finalizer off."""

from collections.abc import Mapping
from typing import Any

from memopod.kube import Client
from metadata_writer import metrics
from metadata_writer.finalizer import change, holds, release
from metadata_writer.graph import Ids
from metadata_writer.pod_marks import CONTEXT, Marking, marks
from metadata_writer.records import StepRecord

Pod = Mapping[str, Any]


async def mark(
    client: Client, pod: Pod, record: StepRecord, ids: Ids, context_id: int, marking: Marking
) -> None:
    """Leave Kubeflow's labels, and take the finalizer off a Pod that has ended. Raises ApiError."""
    marked = False

    def patch_of(pod: Pod) -> dict[str, Any] | None:
        nonlocal marked
        labels = marks(pod, record, ids, context_id, marking)
        freed = release(pod) if record.state.finished else None
        marked = labels is not None
        both = {**(labels or {}).get("metadata", {}), **(freed or {}).get("metadata", {})}
        return {"metadata": both} if both else None

    if await change(client, pod, patch_of) and marked:
        metrics.MARKED.inc()


def is_marked(pod: Pod, record: StepRecord, ids: Ids, marking: Marking) -> bool:
    """Whether nothing is to be patched any more, whatever the id of the run's context is."""
    context = (pod["metadata"].get("labels") or {}).get(CONTEXT, "0")
    context_id = int(context) if context.isdecimal() else 0
    return not holds(pod) and marks(pod, record, ids, context_id, marking) is None
