"""Placeholder mode's second half: a swapped Pod gets the WorkflowTaskResult that its step will not write.

Argo 3.6 and later wait for it; the Pod carries all that it holds, sealed by the webhook. Whoever leads
writes it, looks again each second at those that are still without, and relabels the Pod at the end.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from prometheus_client import Counter

from cache_server.entries import Entries, EntriesUnavailable, Entry
from cache_server.jobs import Jobs
from cache_server.placeholder import cache_id, is_swapped
from memopod.kube import (
    PODS,
    TASK_RESULTS,
    ApiError,
    Client,
    Conflict,
    NotFound,
    Resource,
    emit,
    set_metadata_ops,
)  # fmt: skip
from memopod.steps import NotAStep, names, read_step
from memopod.steps.finish import task_result
from memopod.steps.outputs import is_of
from memopod.steps.times import from_text

_log = structlog.get_logger()
_COMPLETED = Counter("memopod_placeholders_total", "Placeholder Pods, by what became of them.", ["result"])
_ACCESS_REVIEWS = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
_ASK_SECONDS = 60.0

Pod = Mapping[str, Any]


class Completer:
    """Writes the results of the placeholder Pods that `see` hands it, while `leads()` is true."""

    def __init__(
        self, client: Client, entries: Entries, *, secret: bytes, leads: Callable[[], bool], concurrency: int,
        count: Callable[..., None] = lambda **_: None,
    ) -> None:  # fmt: skip
        """`count(namespace, template, reason, entry_id)` is called for each reuse, for the statistics."""
        self._client = client
        self._entries = entries
        self._secret = secret
        self._leads = leads
        self._count = count
        self._jobs = Jobs(concurrency)
        self._refused: set[str] = set()

    def see(self, pod: Pod) -> None:
        """Take note of a Pod as it is now."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        if (metadata.get("labels") or {}).get(names.STEP_LABEL) != names.PLACEHOLDER or not self._leads():
            return
        if uid not in self._jobs and uid not in self._refused:
            name = f"complete:{metadata['namespace']}/{metadata['name']}"
            self._jobs.start(uid, name, lambda: self._complete(pod))

    def recorded(self, pod: Pod, entry: Entry) -> None:
        """Put the number of the entry that a run became on its Pod, where Kubeflow looks for it."""
        metadata = pod["metadata"]
        if (metadata.get("labels") or {}).get(names.KFP_CACHE_ID) == "":
            labels = {names.KFP_CACHE_ID: str(cache_id(entry.id))}
            self._jobs.start(f"label:{metadata['uid']}", "label", lambda: self._label(pod, labels))

    def forget(self, pod: Pod) -> None:
        """Drop what is remembered of a Pod that is gone."""
        self._refused.discard(pod["metadata"]["uid"])

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (bounds a set of tasks)
        """Let what is under way end."""
        await self._jobs.drain(timeout)

    async def _complete(self, pod: Pod) -> None:
        name = pod["metadata"]["name"]
        try:
            result = await self._write(pod)
        except ApiError as error:
            # Seen again within a second.
            _log.info("a placeholder's result is still to be written", pod=name, cause=error.reason)
            result = "unavailable"
        if result in ("forged", "foreign"):
            self._refused.add(pod["metadata"]["uid"])
            _log.warning("no result for a placeholder", pod=name, reason=result)
        _COMPLETED.labels(result).inc()

    async def _write(self, pod: Pod) -> str:
        wanted = self._wanted(pod)
        if wanted is None:
            return "forged"
        metadata = wanted["metadata"]
        try:
            await self._client.create(TASK_RESULTS, wanted, namespace=metadata["namespace"])
        except NotFound:
            return "gone"
        except Conflict:
            there = await self._client.get(TASK_RESULTS, metadata["name"], namespace=metadata["namespace"])
            if (there["metadata"].get("labels") or {}).get(names.ENTRY) != metadata["labels"][names.ENTRY]:
                return "foreign"
            if not is_of(there, read_step(pod).workflow_uid):
                # Of an earlier Workflow of the same name: it is about to be deleted. Seen again then.
                return "unavailable"
        await self._relabel(pod, {names.STEP_LABEL: names.REUSED})
        _log.info("reused", pod=pod["metadata"]["name"], entry=metadata["labels"][names.ENTRY])
        entry = metadata["labels"][names.ENTRY]
        template = read_step(pod).template_name
        self._count(namespace=metadata["namespace"], template=template, reason="hit", entry_id=entry)
        source = metadata["annotations"][names.SOURCE_POD] or "an imported run"
        await emit(
            self._client, pod, reason="Reused", component="memopod",
            message=f"a placeholder runs with the outputs of {source}",
        )  # fmt: skip
        try:
            await self._entries.used(metadata["labels"][names.ENTRY], datetime.now(UTC))
        except EntriesUnavailable as error:
            _log.warning("a use was not counted", cause=str(error))
        return "completed"

    def _wanted(self, pod: Pod) -> dict[str, Any] | None:
        """The WorkflowTaskResult of a placeholder; None for a Pod that our webhook did not swap."""
        try:
            step = read_step(pod)
        except NotAStep:
            return None
        created = from_text(pod["metadata"].get("creationTimestamp"))
        if created is None or not is_swapped(step, self._secret, created.timestamp()):
            return None
        return task_result(
            step, msgspec.json.decode(step.annotations[names.ARGO_OUTPUTS]),
            entry=step.annotations[names.ENTRY],
            source_pod=step.annotations.get(names.SOURCE_POD, ""),
            source_execution=step.annotations.get(names.SOURCE_EXECUTION, ""),
            source_logs=step.annotations.get(names.SOURCE_LOGS),
        )  # fmt: skip

    async def _label(self, pod: Pod, labels: Mapping[str, str]) -> None:
        try:
            await self._relabel(pod, labels)
        except ApiError as error:
            _log.info("a Pod keeps its empty cache_id", pod=pod["metadata"]["name"], cause=error.reason)

    async def _relabel(self, pod: Pod, labels: Mapping[str, str]) -> None:
        metadata = pod["metadata"]
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
            *set_metadata_ops(metadata, labels=labels),
        ]
        try:
            await self._client.patch(PODS, metadata["name"], patch, namespace=metadata["namespace"])
        except NotFound:
            # It was deleted meanwhile; its result is what counts.
            return


class ResultsPermission:
    """Whether this account may create WorkflowTaskResults: Kubeflow's own may not.

    Until that is known and so, no step is reused that would wait for one. It is asked again every `every`
    seconds, since a permission can be taken away; a yes holds for three times as long where nobody answers.
    """

    def __init__(
        self, client: Client, namespace: str, *, wanted: bool, every: float = _ASK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._namespace = namespace
        self._wanted = wanted
        self._every = every
        self._clock = clock
        self._until = 0.0

    @property
    def granted(self) -> bool:
        """Whether it was granted when last asked, not too long ago."""
        return self._clock() < self._until

    async def ask(self) -> None:
        """Ask again and again, if anybody wants to know, until cancelled."""
        while self._wanted:
            asked = self._clock()
            try:
                allowed = await self._asked()
            except ApiError as error:
                _log.info("is writing WorkflowTaskResults allowed?", cause=error.reason)
            else:
                self._until = asked + 3 * self._every if allowed else 0.0
                if not allowed:
                    _log.warning(
                        "steps with outputs are not reused: creating workflowtaskresults is not allowed"
                    )
            await asyncio.sleep(self._every)

    async def _asked(self) -> bool:
        wanted = {"group": "argoproj.io", "resource": "workflowtaskresults", "verb": "create"}
        if self._namespace:
            wanted["namespace"] = self._namespace
        body = {
            "apiVersion": _ACCESS_REVIEWS.api_version,
            "kind": _ACCESS_REVIEWS.kind,
            "spec": {"resourceAttributes": wanted},
        }
        try:
            review = await self._client.create(_ACCESS_REVIEWS, body)
        except NotFound:
            # A server without access reviews (the sandbox's) is not one that forbids things.
            return True
        return bool((review.get("status") or {}).get("allowed"))
