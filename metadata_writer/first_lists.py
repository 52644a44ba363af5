"""The start: Pods, Workflows and results are listed side by side, and kept abreast of each other.

A step is looked at once, when both its Pod and its Workflow were listed, instead of once for each; and none
of the three lists runs further ahead of the others than there is room for what it says. The API server
lists by namespace and name, and Argo names Pods and results after their Workflow, so that all three come in
nearly the same order. Where that does not help (Pods that are gone, Workflows that are) no list waits.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from metadata_writer.sighting import StepKey

_AHEAD: Final = 200
"""Steps that one list may be ahead of another: a page."""
_PATIENCE: Final = 60.0
"""Seconds after which a list of Workflows that cannot be read keeps no Pod waiting any longer."""


class FirstLists:
    """Calls `ready` for each step that was held back. After both lists it keeps nothing."""

    def __init__(self, ready: Callable[[StepKey], None], *, patience: float = _PATIENCE) -> None:
        self.pods_listed = asyncio.Event()
        """The informer's `synced`: before that a missing Pod is not a deleted one."""
        self.workflows_listed = asyncio.Event()
        """The same of Workflows."""
        self._ready = ready
        self._patience = patience
        self._patient = True
        self._without_pod: dict[StepKey, None] = {}
        self._without_workflow: dict[StepKey, None] = {}
        self._results: set[StepKey] = set()
        self._moved = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether both lists are read."""
        return self.pods_listed.is_set() and self.workflows_listed.is_set()

    def hold_back(self, key: StepKey, *, pod: bool, workflow: bool) -> bool:
        """Let a step wait, given whether its `pod` and its `workflow` were seen; whether it has to."""
        if self.over:
            return False
        self.let_go(key)
        if not pod and not self.pods_listed.is_set():
            self._without_pod[key] = None
        elif pod and not workflow and not self.workflows_listed.is_set() and self._patient:
            self._without_workflow[key] = None
        else:
            return False
        self._moved.set()
        return True

    def holds(self, key: StepKey) -> bool:
        """Whether a step waits."""
        return key in self._without_pod or key in self._without_workflow

    def let_go(self, key: StepKey) -> bool:
        """A step is not to wait any longer; whether it did."""
        self._results.discard(key)
        held = self.holds(key)
        self._without_pod.pop(key, None)
        self._without_workflow.pop(key, None)
        self._moved.set()
        return held

    def result_alone(self, key: StepKey) -> None:
        """A result was listed of a step that was not."""
        if not self.over:
            self._results.add(key)

    async def pace_pods(self) -> None:
        """Wait while the list of Pods is too far ahead of that of Workflows."""
        while not self.workflows_listed.is_set() and _leads(self._without_workflow, self._without_pod):
            await self._move()

    async def pace_workflows(self) -> None:
        """Wait while the list of Workflows is too far ahead of that of Pods."""
        while not self.pods_listed.is_set() and _leads(self._without_pod, self._without_workflow):
            await self._move()

    async def pace_results(self) -> None:
        """Wait while the list of results is too far ahead of the two others."""
        while not self.over and len(self._results) >= _AHEAD:
            await self._move()

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def run(self) -> None:
        """Let those go that still wait when a list was read; ends after both."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._after_pods(), name="after the list of Pods")
            tasks.create_task(self._after_workflows(), name="after the list of Workflows")
        self._results.clear()

    async def _after_pods(self) -> None:
        await self.pods_listed.wait()
        self._release(self._without_pod)

    async def _after_workflows(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self.workflows_listed.wait()
        except TimeoutError:
            self._patient = False
        self._release(self._without_workflow)
        await self.workflows_listed.wait()
        self._moved.set()

    def _release(self, held: dict[StepKey, None]) -> None:
        keys = list(held)
        held.clear()
        self._moved.set()
        for key in keys:
            self._ready(key)


def _leads(one: dict[StepKey, None], other: dict[StepKey, None]) -> bool:
    """Whether a list waits for another, which does not wait for it."""
    return len(one) >= _AHEAD > len(other)
