"""The sweeper: no Pod is held for long after its `hold-until`, whatever happened to the leader.

Runs in every replica, and in the janitor, which shares none of their fate. To release an overdue Pod
one first *claims* it (an annotation, written with the Pod's resourceVersion), waits, and looks for a
WorkflowTaskResult of ours: a leader that was writing one has done so by then, since it starts none
that late. If there is one the Pod is finished, else the gate is lifted.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from prometheus_client import Counter

from cache_server.finish import go_forward, is_held, own_result, release
from cache_server.jobs import Jobs
from memopod.kube import PODS, ApiError, Client, Conflict, Invalid, NotFound, set_metadata_ops
from memopod.steps import NotAStep, names, read_step
from memopod.steps.times import from_text, to_text

_log = structlog.get_logger()
_SWEPT = Counter("memopod_overdue_total", "Pods that were held too long, by what was done.", ["action"])
FINISHED, RELEASED, TAKEN = "finished", "released", "taken"
for _action in (FINISHED, RELEASED, TAKEN, "failed"):
    _SWEPT.labels(_action)  # from zero: the first one is an increase too, which an alert sees
_CLAIM_LIFETIME = timedelta(seconds=15)
"""A claim that led to nothing in this time is void: whoever made it is gone."""

Pod = Mapping[str, Any]


_LONGEST_HOLD = timedelta(minutes=10)
"""No Pod is ever held longer at once: a later `hold-until` is not one that memopod wrote."""


def is_overdue(pod: Pod, now: datetime, grace: timedelta = timedelta()) -> bool:
    """Whether a Pod is held `grace` past its time. One without a credible time is: nobody could release
    it otherwise.
    """
    if not is_held(pod):
        return False
    until = from_text((pod["metadata"].get("annotations") or {}).get(names.HOLD_UNTIL))
    return until is None or not -_LONGEST_HOLD <= now - until < grace


def is_claimed(pod: Pod, now: datetime) -> bool:
    """Whether somebody is about to release the Pod. A claim that led to nothing is void after a while."""
    claim = str((pod["metadata"].get("annotations") or {}).get(names.CLAIMED_BY, ""))
    at = from_text(claim.rpartition("/")[2])
    return at is not None and abs(now - at) <= _CLAIM_LIFETIME


class Sweeper:
    """Lets go of overdue Pods, some at a time."""

    def __init__(
        self, client: Client, *, identity: str, claim_wait: float, grace: float = 0.0, concurrency: int = 16
    ) -> None:
        self._client = client
        self._identity = identity
        self._claim_wait = claim_wait
        self._grace = timedelta(seconds=grace)
        self._slots = asyncio.Semaphore(concurrency)
        self._jobs = Jobs(None)

    def sweep(self, pods: Iterable[Pod]) -> None:
        """Take up all Pods that are overdue now; one that cannot be let go is taken up again later."""
        now = datetime.now(UTC)
        for pod in pods:
            uid = pod["metadata"]["uid"]
            late = is_overdue(pod, now, self._grace) and not is_claimed(pod, now)
            if late and uid not in self._jobs:
                self._jobs.start(uid, f"sweep:{pod['metadata']['name']}", partial(self._handle, pod))

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (bounds a set of tasks)
        """Let releases under way end; those that take longer are taken up by another sweeper."""
        await self._jobs.drain(timeout)

    async def _handle(self, pod: Pod) -> None:
        name = pod["metadata"]["name"]
        try:
            action = await let_go(
                self._client, pod, identity=self._identity, claim_wait=self._claim_wait, reason="overdue",
                slots=self._slots,
            )  # fmt: skip
        except ApiError as error:
            action = "failed"
            _log.warning("cannot let an overdue Pod go", pod=name, cause=str(error))
        if action in (FINISHED, RELEASED):
            _log.warning("let an overdue Pod go", pod=name, action=action)
        _SWEPT.labels(action).inc()


async def let_go(
    client: Client, pod: Pod, *, identity: str, claim_wait: float, reason: str,
    slots: asyncio.Semaphore,
) -> str:  # fmt: skip
    """Claim a held Pod as it was read, then finish or release it; `claim_wait` seconds lie in between.

    `slots` bounds the calls of many; no slot is held in between.

    FINISHED, RELEASED (with `reason`, a slug), or TAKEN: it changed meanwhile, and somebody looks at it
    again. Raises ApiError.
    """
    async with slots:
        claimed = await _claim(client, pod, identity)
    if claimed is None:
        return TAKEN
    await asyncio.sleep(claim_wait)
    async with slots:
        try:
            result = await own_result(client, read_step(claimed))
        except NotAStep:
            result = None
        if result is None:
            return RELEASED if await release(client, claimed, reason=reason) else TAKEN
    return FINISHED if await go_forward(client, claimed, result, slots=slots) else TAKEN


async def _claim(client: Client, pod: Pod, identity: str) -> dict[str, Any] | None:
    """Write our claim on the Pod as it was read; None if it changed in between."""
    metadata = pod["metadata"]
    claim = f"{identity}/{to_text(datetime.now(UTC))}"
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
        {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        *set_metadata_ops(metadata, labels={}, annotations={names.CLAIMED_BY: claim}),
    ]
    try:
        return await client.patch(PODS, metadata["name"], patch, namespace=metadata["namespace"])
    except (Conflict, Invalid, NotFound):
        return None
