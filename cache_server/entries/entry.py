"""What an entry is, and what a keeper of entries must do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from memopod.steps.locations import Location
from memopod.steps.outputs import Outputs


class EntriesUnavailable(Exception):
    """The entries cannot be asked: the database is locked, lost, too slow, or answers nonsense.

    It says nothing about whether an entry exists. The message names the attempted call and the kind
    of failure, never a value; the cause is attached.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One step that ran and succeeded, and what it put out.

    `id` is a uuid4 in hex (32 characters), `key` the entry key in hex, `components` the digests of
    the key's parts by name. `execution_id` is that of the run in the metadata store, where known.
    All times are aware and UTC; `last_used_at` is None until the first use. `max_staleness_seconds`
    is what the step that ran allows for reuse, None for no limit of its own. A `pinned` entry is not
    deleted for its age, idleness or number.
    """

    id: str
    namespace: str
    key: str
    key_version: int
    components: Mapping[str, str]
    template_name: str
    workflow: str
    workflow_uid: str
    node_id: str
    pod_name: str
    pod_uid: str
    image_id: str
    outputs: Outputs
    execution_id: int | None
    started_at: datetime
    finished_at: datetime
    recorded_at: datetime
    last_used_at: datetime | None = None
    uses: int = 0
    max_staleness_seconds: int | None = None
    pinned: bool = False

    @property
    def took(self) -> timedelta:
        """How long the step ran."""
        return self.finished_at - self.started_at

    @property
    def saved(self) -> timedelta:
        """Time that its reuse has saved so far."""
        return self.uses * self.took

    def names_producer_of(self, location: Location) -> bool:
        """Whether this entry's run put out exactly this location, under a key that names its Pod.

        A key that holds the Pod's name as a path segment is written by that Pod only. Any other may have
        been written over since, be it by another step of the same workflow.
        """
        # Of an imported entry the name is not known: the empty one names nothing.
        segments = [segment for segment in location.key.split("/") if segment]
        return self.pod_name in segments and any(
            artifact.location == location for artifact in self.outputs.artifacts
        )


class Entries(Protocol):
    """At most one entry for each (namespace, key): the newest success.

    Every call ends within a deadline and raises EntriesUnavailable when there is no answer.
    """

    async def find(self, namespace: str, key: str) -> Entry | None:
        """The entry of a key in a namespace."""

    async def last_key(self, namespace: str) -> str | None:
        """The key in a namespace that sorts last, letters after digits; None without any entry."""

    async def get(self, entry_id: str) -> Entry | None:
        """The entry with that id."""

    async def put(self, entry: Entry) -> bool:
        """Add the entry, or replace an older one of the same namespace and key.

        Older is what finished earlier; of two that finished at the same time the first one stays, and
        so does an entry of the same Pod. A replaced entry's id, uses and `last_used_at` are gone.
        Returns whether the entry with this id now stands. Of concurrent writers the newest wins.
        """

    async def used(self, entry_id: str, at: datetime) -> None:
        """Count a use. Nothing happens if the entry was replaced meanwhile."""

    async def retire(self, entry_id: str, reason: str) -> bool:
        """Take the entry out of reuse for good; `reason` is logged. Returns whether it was there."""

    async def recorded(self, pod_uid: str) -> bool:
        """Whether an entry of this Pod stands."""

    async def list(
        self,
        namespace: str | None = None,
        template: str | None = None,
        *,
        id_prefix: str = "",
        limit: int = 100,
    ) -> Sequence[Entry]:
        """The entries that finished last, newest first; None means any namespace or template."""

    async def producer(self, namespace: str, location: Location) -> Entry | None:
        """The newest entry for which `Entry.names_producer_of(location)` holds."""
