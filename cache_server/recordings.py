"""Which runs this process is recording right now: a step that reads what one of them put out can wait.

Argo starts a step as soon as the one before it has succeeded, often before that is an entry.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from memopod.steps.locations import Location

Pod = Mapping[str, Any]


class Recordings:
    """The recordings under way, by the UID of their Pod."""

    def __init__(self) -> None:
        self._under_way: dict[str, tuple[Pod, asyncio.Event]] = {}

    def begin(self, pod: Pod) -> None:
        """A run is being recorded from now on."""
        self._under_way[pod["metadata"]["uid"]] = pod, asyncio.Event()

    def end(self, pod: Pod) -> None:
        """A run was recorded, or will not be for now."""
        known = self._under_way.pop(pod["metadata"]["uid"], None)
        if known is not None:
            known[1].set()

    async def settled(self, namespace: str, location: Location, seconds: float) -> bool:
        """Wait until the runs under way that may have put out this location are recorded.

        Only a location that holds the Pod's name counts (`Entry.names_producer_of`). False if there
        is none, or if it takes longer than `seconds`.
        """
        segments = set(location.key.split("/"))
        ends = [end for pod, end in self._under_way.values() if _may_be(pod, namespace, segments)]
        if not ends:
            return False
        try:
            async with asyncio.timeout(seconds):
                for end in ends:
                    await end.wait()
        except TimeoutError:
            return False
        return True


def _may_be(pod: Pod, namespace: str, segments: set[str]) -> bool:
    metadata = pod["metadata"]
    return metadata["namespace"] == namespace and metadata["name"] in segments
