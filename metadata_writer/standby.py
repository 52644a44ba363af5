"""Steps that another replica writes: this one keeps what it saw of them until the store has it.

So a leader that dies takes nothing with it that its follower saw, and a follower needs no more memory than a
leader. It asks the store some seconds after the leader should have written, and writes nothing itself.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreError
from metadata_writer.fitting import storable
from metadata_writer.graph import Ids, plan, put_ids
from metadata_writer.known import TypeIds
from metadata_writer.lookup import Lookup
from metadata_writer.observer import Observation, Observer
from metadata_writer.pod_marks import Marking
from metadata_writer.pod_patches import is_marked
from metadata_writer.records import StepRecord
from metadata_writer.sighting import StepKey
from metadata_writer.sightings import Sightings

_GRACE: Final = 5.0
"""Seconds that the leader has to write what was seen."""
_AGAIN: Final = 30.0
"""Seconds until the store is asked again about a step that it lacked."""
_PAUSE: Final = 0.5


class StandBy:
    """Settles the steps of others once they are recorded.

    `leads` says which are others' no more; `led` is called with those.
    """

    def __init__(
        self,
        observer: Observer,
        sightings: Sightings,
        lookup: Lookup,
        *,
        marking: Marking,
        batch: int,
        leads: Callable[[StepKey], bool],
        led: Callable[[StepKey], None],
    ) -> None:
        self._observer = observer
        self._sightings = sightings
        self._lookup = lookup
        self._marking = marking
        self._batch = batch
        self._leads = leads
        self._led = led
        self._new: dict[StepKey, float] = {}
        self._again: dict[StepKey, float] = {}
        self._taken = asyncio.Event()
        self._log = structlog.get_logger()

    def park(self, key: StepKey) -> None:
        """A step of another replica has changed."""
        self._again.pop(key, None)
        self._new.pop(key, None)
        # At the start most is long recorded, and the lists wait for what they showed so far.
        grace = _GRACE if self._sightings.first_lists.over else 0.0
        self._new[key] = time.monotonic() + grace

    async def fewer_than(self, waiting: int) -> None:
        """Wait until fewer steps wait for their first question."""
        while len(self._new) >= waiting:
            self._taken.clear()
            await self._taken.wait()

    async def run(self, up: asyncio.Event) -> None:
        """Ask about those whose time has come, until cancelled, while the store is `up`."""
        while True:
            await up.wait()
            keys = self._due()
            if not keys:
                await asyncio.sleep(_PAUSE)
                continue
            try:
                await self.check(keys)
            except StoreError as error:
                self._log.warning("not known whether others' steps are recorded", error=str(error))
                self._ask_again(keys)

    def _due(self) -> list[StepKey]:
        due: list[StepKey] = []
        now = time.monotonic()
        for waiting in (self._new, self._again):
            for key, at in waiting.items():
                if at > now or len(due) == self._batch:
                    break
                due.append(key)
        for key in due:
            self._new.pop(key, None)
            self._again.pop(key, None)
        self._taken.set()
        return due

    def _ask_again(self, keys: Sequence[StepKey]) -> None:
        for key in keys:
            if key not in self._new:
                self._again[key] = time.monotonic() + _AGAIN

    async def check(self, keys: Sequence[StepKey]) -> None:
        """Settle those of these steps that are recorded. Raises StoreError.

        One that is not over comes back when it changes, one that the store lacks is asked about again.
        """
        asked: list[tuple[StepKey, Observation, StepRecord]] = []
        for key in sorted(keys):
            if self._leads(key):
                self._led(key)
                continue
            try:
                seen = await self._observer.observe(key)
            except Exception as error:  # noqa: BLE001 (the leader tells of it; none stops the others)
                self._log.debug("a step of another replica cannot be read", error=type(error).__name__)
                self._ask_again([key])
                continue
            if seen.record is None:
                if seen.closed:
                    self._sightings.settle(key, seen.version)
            elif seen.record.state.finished and seen.reported and (seen.closed or seen.pod is None):
                asked.append((key, seen, seen.record))
        found = await self._recorded([record for *_, record in asked])
        for (key, seen, record), ids in zip(asked, found, strict=True):
            if ids is not None and (seen.pod is None or is_marked(seen.pod, record, ids, self._marking)):
                self._sightings.settle(key, seen.version)
            else:
                self._ask_again([key])

    async def _recorded(self, records: Sequence[StepRecord]) -> list[Ids | None]:
        """As `recorded`; of a step that cannot be asked about None, and it stops no other."""
        try:
            return await recorded(self._lookup, records)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 (the leader tells of it; none stops the others)
            if len(records) > 1:
                return [(await self._recorded([record]))[0] for record in records]
            self._log.debug("a step of another replica cannot be asked about", error=type(error).__name__)
            return [None]


async def recorded(lookup: Lookup, records: Sequence[StepRecord]) -> list[Ids | None]:
    """The store's ids of each step of which it has all, None for the others. Raises StoreError."""
    records = [storable(record) for record in records]
    lore = await lookup.ask(records)
    found: list[Ids | None] = []
    for record in records:
        known = lore.of(record)
        types = TypeIds(
            run=0, pipeline=0, executions={record.type_name: 0},
            artifacts={output.type_name: 0 for output in record.outputs},
        )  # fmt: skip
        one = plan(record, known, types)
        nothing = service.PutLineageSubgraphRequest(), service.PutLineageSubgraphResponse()
        found.append(next(put_ids([one], *nothing)) if one.complete else None)
    return found
