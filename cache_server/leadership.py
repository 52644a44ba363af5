"""Who leads: one of several replicas, by a Lease, or the only one there is."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from memopod.kube import Client, LeaderElector, LeaseWatcher


class Elector(Protocol):
    """Takes part in an election while `run` runs."""

    def is_leader(self) -> bool:
        """Whether this process leads at this very moment."""

    async def run(self, *, hand_over: Callable[[], bool]) -> None:
        """Take part until cancelled. What is held is then handed over at once if `hand_over()`, else it
        runs out.
        """


class Heartbeat(Protocol):
    """Follows what a leader shows of itself while `run` runs."""

    def fresh(self) -> bool:
        """Whether a leader was heard of recently enough."""

    async def run(self) -> None:
        """Listen until cancelled."""


class Alone:
    """The only replica: it leads, and knows that it lives."""

    def is_leader(self) -> bool:
        """See `Elector.is_leader`."""
        return True

    def fresh(self) -> bool:
        """See `Heartbeat.fresh`."""
        return True

    async def run(self, *, hand_over: Callable[[], bool] = lambda: True) -> None:  # noqa: ARG002 (of the Protocol)
        """Wait until cancelled."""
        await asyncio.Event().wait()


def leadership(
    client: Client, *, elects: bool, namespace: str, name: str, identity: str
) -> tuple[Elector, Heartbeat]:
    """How this process leads, and how it knows that somebody does."""
    if not elects:
        return Alone(), Alone()
    elector = LeaderElector(client, namespace=namespace, name=name, identity=identity)
    return elector, LeaseWatcher(client, namespace, name)
