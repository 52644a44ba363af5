"""Optionally, a Pod does not go before its step is recorded: a finalizer on Pods that run, off by default.

It comes off with the labels, in one patch, once the step is recorded in full. It never keeps a deleted Pod
for longer than a minute, whatever became of the store; what a writer left that is gone itself,
`memopod writer release` takes off.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from memopod.kube import PODS, ApiError, Client, Conflict, Invalid, NotFound

FINALIZER: Final = "memopod.io/record"
LONGEST: Final = 60.0
"""Seconds that a deleted Pod is kept at most: a store that is away for longer is not waited for."""
_EVERY: Final = 1.0
_TRIES: Final = 5
"""How often a Pod is changed that others change at the same moment."""

Pod = Mapping[str, Any]
Patch = dict[str, Any]


def holds(pod: Pod) -> bool:
    """Whether the finalizer is on a Pod."""
    return FINALIZER in (pod["metadata"].get("finalizers") or ())


def hold(pod: Pod) -> Patch | None:
    """The merge patch that puts it on; None where it is on, or the Pod is being deleted."""
    if holds(pod) or pod["metadata"].get("deletionTimestamp"):
        return None
    return _with(pod, [*(pod["metadata"].get("finalizers") or ()), FINALIZER])


def release(pod: Pod) -> Patch | None:
    """The merge patch that takes it off and leaves those of others; None where it is not on."""
    if not holds(pod):
        return None
    return _with(pod, [name for name in pod["metadata"]["finalizers"] if name != FINALIZER])


def _with(pod: Pod, finalizers: list[str]) -> Patch:
    # The list is put as a whole, so it must be the one that was seen.
    return {"metadata": {"resourceVersion": pod["metadata"].get("resourceVersion"), "finalizers": finalizers}}


async def change(client: Client, pod: Pod, patch_of: Callable[[Pod], Patch | None]) -> bool:
    """Patch that very Pod as it is now; whether there was something to change. Raises ApiError."""
    metadata = pod["metadata"]
    for _ in range(_TRIES):
        patch = patch_of(pod)
        if patch is None:
            return False
        patch["metadata"]["uid"] = metadata["uid"]  # not one made anew under its name
        try:
            await client.patch(PODS, metadata["name"], patch, namespace=metadata["namespace"])
        except NotFound:
            return False
        except Conflict:
            try:
                pod = await client.get(PODS, metadata["name"], namespace=metadata["namespace"])
            except NotFound:
                return False
            if pod["metadata"]["uid"] != metadata["uid"]:
                return False
        else:
            return True
    raise Conflict(f"Pod {metadata['name']} changed {_TRIES} times while it was patched", status=409)


class Finalizers:
    """Hears of every Pod, and takes the finalizer off those that are deleted for too long.

    Where it is not `on`, off all.
    """

    def __init__(self, client: Client, *, on: bool, longest: float = LONGEST) -> None:
        self.on = on
        self._client = client
        self._longest = longest if on else 0.0
        self._due: dict[str, tuple[float, Pod]] = {}
        self._log = structlog.get_logger()

    def on_pod(self, event: str, pod: Pod) -> None:
        """A Pod was added, modified or deleted."""
        metadata = pod["metadata"]
        if event == "DELETED" or not holds(pod):
            self._due.pop(metadata["uid"], None)
        elif metadata.get("deletionTimestamp") or not self.on:
            named = {
                k: metadata.get(k) for k in ("namespace", "name", "uid", "resourceVersion", "finalizers")
            }
            since, _ = self._due.get(metadata["uid"], (time.monotonic(), None))
            self._due[metadata["uid"]] = since, {"metadata": named}

    async def hold(self, pod: Pod) -> None:
        """Keep a Pod that runs. Raises ApiError."""
        if not self.on:
            return
        try:
            await change(self._client, pod, hold)
        except Invalid:
            self._log.debug("a Pod that is being deleted is not kept", pod=pod["metadata"]["name"])

    async def run(self) -> None:
        """Let Pods go at their time, until cancelled."""
        while True:
            for uid, (since, pod) in list(self._due.items()):
                if time.monotonic() - since < self._longest:
                    continue
                try:
                    await change(self._client, pod, release)
                except ApiError as error:
                    self._log.warning("a Pod is not let go yet", error=str(error))
                    continue
                self._due.pop(uid, None)
                if self.on:
                    self._log.warning(
                        "a deleted Pod was let go before its step was recorded in full",
                        pod=pod["metadata"]["name"],
                    )
            await asyncio.sleep(_EVERY)
