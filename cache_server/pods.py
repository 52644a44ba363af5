"""Who is told of the Pods of steps, and what this process does about those that nobody lets go."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from cache_server.completion import Completer
from cache_server.controller import Controller
from cache_server.leadership import Elector
from cache_server.recorder import Recorder
from cache_server.sweeper import Sweeper, is_overdue
from memopod.kube import Informer
from memopod.steps import names

_log = structlog.get_logger()
SELECTOR = f"{names.STEP_LABEL} in ({names.HELD},{names.RELEASED},{names.PLACEHOLDER})"
"""The Pods to follow."""
_LOOK_SECONDS = 1.0
"""How often all Pods are looked at again: for those that are overdue, or that a failed call left."""
_DRAIN_SECONDS = 8.0
"""Shutdown: how long decisions under way may take to end. Kubernetes kills after 30 s."""
_STUCK_SECONDS = 10.0
"""How long a Pod may be seen overdue, and still be held, or wait for a leader that carries no decision
out, before that means that something is wrong."""
_SIT_OUT_SECONDS = 30.0
"""How long a replica that could not let Pods go leaves the Lease to others."""


@dataclass(slots=True)
class Pods:
    """The parts of the process that follow Pods."""

    controller: Controller
    recorder: Recorder
    completer: Completer
    sweeper: Sweeper
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while Pods are held that should have been let go: this replica's own view."""
    _overdue_since: dict[str, float] = field(default_factory=dict)

    def on_event(self, event: str, pod: dict[str, Any]) -> None:
        """A Pod has changed."""
        if event == "DELETED":
            self.controller.forget(pod)
            self.recorder.forget(pod)
            self.completer.forget(pod)
        else:
            self.controller.see(pod)
            self.recorder.see(pod)
            self.completer.see(pod)

    async def look_regularly(self, informer: Informer) -> None:
        """See every Pod again: a new leader's first look, and everybody's for overdue ones."""
        await informer.synced.wait()
        while True:
            pods = list(informer.objects.values())
            for pod in pods:
                self.on_event("MODIFIED", pod)
            self.sweeper.sweep(pods)
            self.controller.tidy({pod["metadata"]["uid"] for pod in pods})
            self._judge(pods)
            await asyncio.sleep(_LOOK_SECONDS)

    def _judge(self, pods: Iterable[dict[str, Any]]) -> None:
        """Set or clear `stuck`: a Pod has been overdue for long, or Pods wait and nothing is decided."""
        pods = list(pods)
        moment, now = time.monotonic(), datetime.now(UTC)
        late = {pod["metadata"]["uid"] for pod in pods if is_overdue(pod, now)}
        self._overdue_since = {uid: self._overdue_since.get(uid, moment) for uid in late}
        overdue = any(moment - since > _STUCK_SECONDS for since in self._overdue_since.values())
        if overdue or self.controller.stalled(pods) > _STUCK_SECONDS:
            self.stuck.set()
        else:
            self.stuck.clear()

    async def lead(self, informer: Informer, elector: Elector) -> None:
        """Take part in the election, except while held Pods wait and nothing is done about them.

        Whatever the reason (a permission that is missing, a watch that hangs): another replica may do
        better, and without a leader the webhook holds no more Pods. While a write of this leader may be under
        way the Lease runs out, and nobody leads until that write is there or never will be.
        """
        await informer.synced.wait()
        while True:
            electing = asyncio.create_task(
                elector.run(hand_over=self.controller.ended_cleanly), name="election"
            )
            stuck = asyncio.create_task(self.stuck.wait(), name="stuck")
            try:
                await asyncio.wait({electing, stuck}, return_when=asyncio.FIRST_COMPLETED)
                if electing.done():
                    electing.result()
            finally:
                electing.cancel()
                stuck.cancel()
                await asyncio.gather(electing, stuck, return_exceptions=True)
            _log.error("held Pods wait and nothing is done about them: giving the Lease up for a while")
            await asyncio.sleep(_SIT_OUT_SECONDS)

    async def drain(self) -> None:
        """Let what is under way end."""
        await asyncio.gather(
            self.controller.drain(_DRAIN_SECONDS),
            self.recorder.drain(_DRAIN_SECONDS),
            self.completer.drain(_DRAIN_SECONDS),
            self.sweeper.drain(_DRAIN_SECONDS),
        )
