"""Who writes: one leader for all namespaces, or one for each share of them.

A namespace belongs to the shard that its name's hash says, so that any number of replicas agree. Each
shard has a Lease; a replica may hold several. Two that write at once would write the same graph; leaders
save them from doing all the work twice.
"""

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

from memopod.kube import Client, LeaderElector

_LEASE = "memopod-metadata-writer"


def shard_of(namespace: str, shards: int) -> int:
    """Which of `shards` a namespace belongs to, from 0."""
    digest = hashlib.sha256(namespace.encode()).digest()
    return int.from_bytes(digest[:8], "big") % shards


class Shards:
    """`won` is called when this replica becomes the leader of one. Without election it leads all."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._electors: list[LeaderElector] = []

    def elect(
        self, client: Client, *, namespace: str, identity: str, won: Callable[[], None]
    ) -> list[Coroutine[Any, Any, None]]:
        """What takes part in the election of each shard, until it is cancelled."""

        def on_change(leads: bool) -> None:
            if leads:
                won()

        for shard in range(self.count):
            name = _LEASE if self.count == 1 else f"{_LEASE}-{shard}-of-{self.count}"
            elector = LeaderElector(
                client, namespace=namespace, name=name, identity=identity, on_change=on_change
            )
            self._electors.append(elector)
        return [elector.run() for elector in self._electors]

    def leads(self, namespace: str) -> bool:
        """Whether this replica writes the steps of a namespace at this very moment."""
        return not self._electors or self._electors[shard_of(namespace, self.count)].is_leader()

    def led(self) -> list[int]:
        """The shards that this replica leads."""
        if not self._electors:
            return list(range(self.count))
        return [number for number, elector in enumerate(self._electors) if elector.is_leader()]
