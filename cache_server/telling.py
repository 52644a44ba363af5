"""Events about Pods: told some time soon, so that a server that is slow with those holds nothing else up."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from prometheus_client import Counter

from cache_server.jobs import Jobs
from memopod.kube import Client, emit

_DROPPED = Counter("memopod_events_dropped_total", "Events left out: too many waited, or the process ended.")
_AT_ONCE = 4
"""Few: nothing waits for an Event, and a Pod that waits for its status should not wait behind them."""
_MOST = 1000
"""So many wait at most, each with its Pod's metadata."""


class Teller:
    """Emits Events, `at_once` at a time; beyond `most` that wait they are dropped, and counted."""

    def __init__(self, client: Client, *, at_once: int = _AT_ONCE, most: int = _MOST) -> None:
        self._client = client
        self._jobs = Jobs(at_once)
        self._most = most

    def tell(self, pod: Mapping[str, Any], reason: str, message: str) -> None:
        """Emit an Event about the Pod. One of the same reason that still waits stands for both."""
        key = f"{pod['metadata']['uid']}/{reason}"
        if key in self._jobs:
            return
        if len(self._jobs) >= self._most:
            _DROPPED.inc()
            return
        about = {field: pod[field] for field in ("apiVersion", "kind", "metadata") if field in pod}
        work = partial(emit, self._client, about, reason=reason, component="memopod", message=message)
        self._jobs.start(key, f"tell:{pod['metadata']['name']}", work)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (bounds a set of tasks)
        """Let Events under way be told; those that take longer are left out, and counted."""
        _DROPPED.inc(await self._jobs.drain(timeout))


async def drain_in_turn(timeout: float, *parts: Any) -> None:  # noqa: ASYNC109 (bounds a set of tasks)
    """Drain what each part hands to the next one, in `timeout` seconds altogether."""
    end = asyncio.get_running_loop().time() + timeout
    for part in parts:
        await part.drain(max(0.0, end - asyncio.get_running_loop().time()))
