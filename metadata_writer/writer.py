"""Keeps the store in step with the cluster: looks at steps, records what is to be seen, comes back if
something is missing.

Nothing that fails is dropped, and nothing that fails delays another step: while the store is away all
wait for it, a step that fails by itself waits alone, for longer each time.
"""

import asyncio
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from memopod.kube import ApiError, Client, emit
from memopod.mlmd import StoreError, StoreUnavailable
from metadata_writer import metrics
from metadata_writer.attempts import FORESEEN, Attempts, as_json, said
from metadata_writer.finalizer import Finalizers
from metadata_writer.lag import Lag
from metadata_writer.lookup import Lookup
from metadata_writer.observer import Observation, Observer, TemplateUnreadable
from metadata_writer.pod_marks import Marking
from metadata_writer.pod_patches import mark
from metadata_writer.recorder import Outcome, Recorder, Wish
from metadata_writer.records import State, StepRecord
from metadata_writer.shards import Shards
from metadata_writer.sighting import StepKey
from metadata_writer.sightings import Sightings
from metadata_writer.standby import StandBy
from metadata_writer.store_probe import StoreProbe
from metadata_writer.work_queue import WorkQueue

_LINGER: Final = 0.01
"""Seconds that a batch waits for company: less than anybody notices, enough for a burst of events."""
_LOOKS: Final = 12
"""How often a step is looked at again for what is missing: three minutes in all. After that only an
event of its own, the round through the store for unresolved artifacts, or a restart brings it back."""
_PATIENT_LOOKS: Final = 7
"""How often a reused step waits for the record of the run it reuses: half a minute. It is usually there."""
_NODE_GRACE: Final = 2.0
"""Seconds that a node without a Pod is left alone: the Pod's event may be under way, and says more."""
_FULL: Final = 300
"""Steps that wait; beyond that no further page of a list is asked for."""
_LISTED: Final = 100
"""Steps in quarantine that `status` names; all are counted."""

RecordedHook = Callable[[StepRecord, State | None], None]


@dataclass(slots=True, kw_only=True)
class Options:
    """How a writer works: see the settings of the same names. `recorded` hears of each new record,
    and of the state that the store had.
    """

    live_bytes: int
    gone_bytes: int
    batch: int = 100
    marking: Marking = Marking.AUTO
    finalizer: bool = False
    recorded: RecordedHook | None = None


@dataclass(slots=True)
class _Turn:
    """One step of a batch."""

    key: StepKey
    seen: Observation
    record: StepRecord
    patient: bool


class Writer:
    """Any number of tasks may `work` at once; each takes other steps."""

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        lookup: Lookup,
        probe: StoreProbe,
        shards: Shards,
        options: Options,
    ) -> None:
        self._client = client
        self.finalizers = Finalizers(client, on=options.finalizer)
        self._recorder = recorder
        self._probe = probe
        self._shards = shards
        self._options = options
        self._queue: WorkQueue[StepKey] = WorkQueue()
        self._attempts: Attempts[StepKey] = Attempts()
        self._lag: Lag[StepKey] = Lag()
        self._log = structlog.get_logger()
        self.sightings = Sightings(self._changed, live=options.live_bytes, gone=options.gone_bytes)
        self._observer = Observer(client, self.sightings)
        self.standby = StandBy(
            self._observer,
            self.sightings,
            lookup,
            marking=options.marking,
            batch=options.batch,
            leads=lambda key: self._shards.leads(self.sightings.namespace(key)),
            led=self._queue.add,
        )
        metrics.FAILING.set_function(lambda: self._attempts.failing)
        metrics.QUARANTINED.set_function(lambda: len(self._attempts.quarantine()))
        metrics.QUEUE.set_function(lambda: len(self._queue))
        metrics.KEPT.set_function(lambda: self.sightings.bytes_kept)
        metrics.OLDEST.set_function(self._lag.oldest)

    async def work(self) -> None:
        """Record batch after batch until cancelled."""
        while True:
            await self._probe.up.wait()
            keys = await self._queue.take(self._options.batch, _LINGER)
            try:
                await self._record(keys)
            finally:
                for key in keys:
                    self._queue.done(key)

    async def drain(self, seconds: float) -> int:
        """Wait until all that waits is recorded, at most that long; how many steps are left."""
        try:
            await asyncio.wait_for(self._queue.join(), seconds)
        except TimeoutError:
            return len(self._queue)
        finally:
            self._queue.close()
        return 0

    async def pace(self) -> None:
        """Wait while so many steps are queued that no more should be listed."""
        await self._queue.fewer_than(_FULL)
        await self.standby.fewer_than(_FULL)

    def won(self) -> None:
        """This replica leads a shard from now on: its steps have their turn."""
        for key in self.sightings.waiting():
            self._queue.add(key)

    def _parked(self) -> int:
        if len(self._shards.led()) == self._shards.count:
            return 0
        waiting = map(self.sightings.namespace, self.sightings.waiting())
        return sum(not self._shards.leads(namespace) for namespace in waiting)

    def status(self) -> dict[str, Any]:
        """For `memopod writer status`."""
        quarantine, last = self._attempts.quarantine(), self._attempts.last_error()
        return {
            "store": "answers" if self._probe.up.is_set() else "away",
            "shards": {"led": self._shards.led(), "of": self._shards.count},
            "queue": len(self._queue),
            "parked": self._parked(),
            "steps_seen": self.sightings.steps,
            "steps_unsettled": self.sightings.unsettled,
            "bytes_kept": self.sightings.bytes_kept,
            "unreadable_workflows": self.sightings.unreadable_workflows,
            "oldest_waiting_seconds": round(self._lag.oldest(), 3),
            "lag_seconds": self._lag.quantiles(),
            "failing": self._attempts.failing,
            "quarantined": len(quarantine),
            "quarantine": [
                {"step": "/".join(key), "namespace": self.sightings.namespace(key), **as_json(attempt)}
                for key, attempt in list(quarantine.items())[:_LISTED]
            ],
            "last_error": as_json(last) if last is not None else None,
        }

    def _changed(self, key: StepKey) -> None:
        self._lag.begin(key)
        self._queue.add(key)

    async def _record(self, keys: Sequence[StepKey]) -> None:
        turns = []
        for key in sorted(keys):  # the steps of a workflow side by side
            if self._leads(key):
                turn = await self._observe(key)
                if turn is not None:
                    turns.append(turn)
        turns = [turn for turn in turns if self._leads(turn.key)]
        if turns:
            await self._record_turns(turns)

    async def _record_turns(self, turns: Sequence[_Turn]) -> None:
        try:
            results = await self._recorder.record_all([Wish(turn.record, turn.patient) for turn in turns])
        except Exception as error:  # noqa: BLE001 (one step that nobody foresaw must not stop the others)
            if len(turns) == 1:
                await self._put_off(turns[0].key, error)
                return
            for turn in turns:
                await self._record_turns([turn])
            return
        await self._conclude(turns, results)

    def _leads(self, key: StepKey) -> bool:
        namespace = self.sightings.namespace(key)
        if not namespace or self._shards.leads(namespace):
            return True  # of a step that was forgotten there is nothing to write
        self._lag.end(key, written=False)
        self.standby.park(key)
        return False

    async def _observe(self, key: StepKey) -> _Turn | None:
        looks = self._attempts.looks(key)
        try:
            seen = await self._observer.observe(key)
        except Exception as error:  # noqa: BLE001 (one step that nobody foresaw must not stop the others)
            await self._put_off(key, error, hopeless=isinstance(error, TemplateUnreadable))
            return None
        record = seen.record
        if record is None:
            self._finish(key, seen, settled=seen.closed)
            return None
        if not record.from_pod and not looks:
            self._attempts.looked(key)
            self._queue.add_later(key, _NODE_GRACE)
            return None
        if not seen.reported and not looks and seen.pod is not None:
            self._queue.add_later(key, self._attempts.looked(key))  # what it put out is under way
            return None
        return _Turn(key, seen, record, patient=looks < _PATIENT_LOOKS)

    async def _conclude(self, turns: Sequence[_Turn], results: Sequence[Outcome | StoreError]) -> None:
        lost = [turn for turn, r in zip(turns, results, strict=True) if isinstance(r, StoreUnavailable)]
        away = bool(lost) and not await self._probe.ask()
        if away:
            metrics.RETRIES.labels(reason="store-away").inc(len(lost))
        marked = []
        for turn, result in zip(turns, results, strict=True):
            if isinstance(result, StoreUnavailable) and away:
                self._queue.add(turn.key)
            elif isinstance(result, StoreError):
                await self._put_off(turn.key, result)
            elif result.not_ours:
                self._leads(turn.key)  # it is parked until this replica leads again
            else:
                marked.append(self._mark_and_go_on(turn, result))
        await asyncio.gather(*marked)

    async def _mark_and_go_on(self, turn: _Turn, outcome: Outcome) -> None:
        self._count(turn, outcome)
        try:
            if turn.seen.pod is not None and not turn.record.state.finished:
                await self.finalizers.hold(turn.seen.pod)
            if turn.seen.pod is not None and turn.seen.reported and outcome.ids is not None:
                ids, context, marking = outcome.ids, outcome.context_id, self._options.marking
                await mark(self._client, turn.seen.pod, turn.record, ids, context, marking)
        except ApiError as error:
            await self._put_off(turn.key, error)
            return
        # Of one that is recorded since before, whoever recorded it has tried, and the round through the
        # store goes on: a file that no step made stays unknown for ever.
        resolved = not outcome.unresolved or not (outcome.written or self._attempts.looks(turn.key))
        if turn.seen.reported and resolved and not outcome.awaits_source:
            over = turn.seen.closed or turn.seen.pod is None
            self._finish(turn.key, turn.seen, settled=turn.record.state.finished and over)
        else:
            self._come_back(turn, outcome)

    def _count(self, turn: _Turn, outcome: Outcome) -> None:
        if outcome.awaits_source:
            return
        self._lag.end(turn.key, written=outcome.written)
        if not outcome.written:
            metrics.UNCHANGED.inc()
            return
        record = turn.record
        metrics.RECORDED.labels(state=record.state.value).inc()
        self._log.info("recorded", step=record.external_id, state=record.state.value, run=record.run.name)
        if self._options.recorded is not None:
            self._options.recorded(record, outcome.before)

    def _finish(self, key: StepKey, seen: Observation, *, settled: bool) -> None:
        self._attempts.done(key)
        self._lag.end(key, written=False)
        if settled:
            self.sightings.settle(key, seen.version)

    def _come_back(self, turn: _Turn, outcome: Outcome) -> None:
        delay = self._attempts.looked(turn.key)
        if self._attempts.looks(turn.key) < _LOOKS:
            metrics.RETRIES.labels(reason="incomplete").inc()
            self._queue.add_later(turn.key, delay)
            return
        self._log.warning(
            "a step stays incomplete: some of its artifacts or outputs are not known",
            step=turn.record.external_id,
            artifacts=list(outcome.unresolved),
        )
        self._finish(turn.key, turn.seen, settled=turn.record.state.finished)

    async def _put_off(self, key: StepKey, error: Exception, *, hopeless: bool = False) -> None:
        delay, quarantined = self._attempts.failed(key, error, hopeless=hopeless)
        metrics.RETRIES.labels(reason="error").inc()
        self._queue.add_later(key, delay)
        self._log.warning(
            "a step is in quarantine: it cannot be recorded"
            if quarantined
            else "a step was not recorded; it is tried again",
            step="/".join(key),
            seconds=delay,
            error=said(error),
            # Lines of code, without the text of the error.
            where=None if isinstance(error, FORESEEN) else traceback.format_tb(error.__traceback__),
        )
        if quarantined:
            await self._tell(key, error)

    async def _tell(self, key: StepKey, error: Exception) -> None:
        """An Event on the Pod, for whoever wonders why its step is missing."""
        sighting = self.sightings.look(key)
        if sighting.pod is None or sighting.pod_gone:
            return
        await emit(
            self._client,
            sighting.pod,
            reason="NotRecorded",
            message=f"this step cannot be recorded in the metadata store: {said(error)}",
            component="memopod-metadata-writer",
            type="Warning",
        )
