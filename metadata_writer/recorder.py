"""Writes steps into the store, however often it is told to: what is there already is not put again.

Ask what the store knows, plan the difference, put it in one transaction for each run. Whoever else
writes the same step in between makes the store refuse the put (ALREADY_EXISTS), and everything is asked
again. Many steps share the questions; one that the store refuses spoils it for no other.
"""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient, StoreError, StoreUnavailable
from metadata_writer import metrics
from metadata_writer.fitting import shortened, storable
from metadata_writer.graph import Ids, Plan, changes, join, plan, put_ids
from metadata_writer.lookup import Lookup, Lore, places
from metadata_writer.provenance import awaits_source
from metadata_writer.records import Run, State, StepRecord
from metadata_writer.run_registry import RunRegistry
from metadata_writer.type_registry import TypeRegistry

_TOGETHER: Final = 2
"""How many attempts steps of one run make together, before each goes alone."""
_FIRST_PAUSE: Final = 0.02
"""Seconds before the second attempt, doubled each time: a transaction of the store takes milliseconds."""
_RUNS_AT_ONCE: Final = 8
"""Transactions under way at a time: enough to hide the store's latency, few enough for its database."""
_TRIES: Final = {
    grpc.StatusCode.ABORTED: 8,  # a deadlock or a lock held too long
    grpc.StatusCode.ALREADY_EXISTS: 5,  # somebody else put the step, or one of its types, first
    grpc.StatusCode.NOT_FOUND: 3,  # ids from before the store was wiped
    grpc.StatusCode.INVALID_ARGUMENT: 3,  # the same, as other calls put it
}
"""How often one recording is tried where asking again may help: collisions with other writers are short."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One step to record. `patient`: a reused step whose source is not recorded yet is left for later."""

    record: StepRecord
    patient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one recording.

    `written`: the store did not have it all. `unresolved`: names of artifacts that the store does
    not know. `awaits_source`: nothing was written, since the run that the step reuses is not there.
    `not_ours`: nothing was written, since another replica writes this namespace by now.
    `ids` and `context_id` are the store's, None and 0 where nothing was written; `before` is the state
    that it had, None for a step that it did not know.
    """

    written: bool
    unresolved: tuple[str, ...] = ()
    awaits_source: bool = False
    not_ours: bool = False
    before: State | None = None
    ids: Ids | None = None
    context_id: int = 0


Result = Outcome | StoreError


class Recorder:
    """Records steps; any number of tasks may share one, and any number of processes one store.

    `leads` says whether a namespace is this process's to write, and is asked before each put.
    """

    def __init__(self, store: StoreClient, leads: Callable[[str], bool] = lambda _: True) -> None:
        self._store = store
        self._leads = leads
        self._lookup = Lookup(store)
        self._types = TypeRegistry(store)
        self._runs = RunRegistry(store)
        self._slots = asyncio.Semaphore(_RUNS_AT_ONCE)

    async def record(self, record: StepRecord, *, patient: bool = False) -> Outcome:
        """Make the store say what `record` says.

        Raises StoreUnavailable while the store is away, StoreError when it goes on refusing.
        """
        (result,) = await self.record_all([Wish(record, patient)])
        if isinstance(result, StoreError):
            raise result
        return result

    async def record_all(self, wishes: Sequence[Wish]) -> list[Result]:
        """Make the store say what all the records say, each of another step; a result for each."""
        wishes = [Wish(storable(wish.record), wish.patient) for wish in wishes]
        results: dict[str, Result] = {}
        for wave in _waves(wishes):
            results.update(await self._wave(wave))
        return [results[wish.record.external_id] for wish in wishes]

    async def _wave(self, wishes: Sequence[Wish]) -> dict[str, Result]:
        records = [wish.record for wish in wishes]
        lore: Lore | None = None
        try:
            lore = await self._lookup.ask(records)
            types = await self._types.ids(records)
            await self._runs.prepare((record.run for record in records), types.run)
        except StoreUnavailable as error:
            return {wish.record.external_id: error for wish in wishes}
        except StoreError:
            lore = None  # one of them spoils it for all: each run asks for itself
        runs: defaultdict[Run, list[Wish]] = defaultdict(list)
        for wish in wishes:
            runs[wish.record.run].append(wish)
        results: dict[str, Result] = {}
        for done in await asyncio.gather(*(self._settle(run, group, lore) for run, group in runs.items())):
            results.update(done)
        return results

    async def _settle(
        self, run: Run, wishes: Sequence[Wish], lore: Lore | None, tried: int = 0
    ) -> dict[str, Result]:
        """Record steps of one run, together or, where that fails, one by one."""
        for attempt in itertools.count(tried):
            try:
                async with self._slots:
                    return await self._put(run, wishes, lore)
            except StoreError as error:
                trouble = error
            lore = None
            if trouble.code is not grpc.StatusCode.ABORTED:
                self._forget()  # the store may come back as another one, or be another already
                if isinstance(trouble, StoreUnavailable):
                    return {wish.record.external_id: trouble for wish in wishes}
            again = attempt + 1 < _TRIES.get(trouble.code, 0)
            if len(wishes) > 1 and (not again or attempt >= tried + _TOGETHER - 1):
                return await self._settle_apart(run, wishes, attempt)
            if not again:
                return await self._settle_shortened(run, wishes[0], trouble, attempt)
            metrics.RETRIES.labels(reason=trouble.code.name.lower()).inc()
            await asyncio.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 (jitter)
        raise AssertionError("an attempt returns")

    async def _settle_apart(self, run: Run, wishes: Sequence[Wish], tried: int) -> dict[str, Result]:
        results: dict[str, Result] = {}
        for done in await asyncio.gather(*(self._settle(run, [wish], None, tried) for wish in wishes)):
            results.update(done)
        return results

    async def _settle_shortened(
        self, run: Run, wish: Wish, trouble: StoreError, tried: int
    ) -> dict[str, Result]:
        """Record a step that is refused by what its names and texts are cut to, if that changes anything."""
        small = shortened(wish.record)
        if small == wish.record or isinstance(trouble, StoreUnavailable):
            return {wish.record.external_id: trouble}
        metrics.RETRIES.labels(reason="shortened").inc()
        return await self._settle(run, [Wish(small, wish.patient)], None, tried)

    async def _put(self, run: Run, wishes: Sequence[Wish], lore: Lore | None) -> dict[str, Result]:
        records = [wish.record for wish in wishes]
        if lore is None:
            lore = await self._lookup.ask(records)
        types = await self._types.ids(records)
        context = await self._runs.context(run, types.run)
        results: dict[str, Result] = {}
        plans: dict[str, Plan] = {}
        for wish in wishes:
            name, known = wish.record.external_id, lore.of(wish.record)
            if wish.patient and awaits_source(wish.record, known):
                results[name] = Outcome(written=False, awaits_source=True)
            else:
                plans[name] = plan(wish.record, known, types)
        contexts = [context.message]
        if run.pipeline is not None:
            contexts.append(mlmd.Context(type_id=types.pipeline, name=run.pipeline))
        request = join(plans.values(), contexts)
        answer = service.PutLineageSubgraphResponse()
        if not self._leads(run.namespace):
            return {wish.record.external_id: Outcome(written=False, not_ours=True) for wish in wishes}
        if request.executions or request.event_edges:
            answer = await self._store.call("PutLineageSubgraph", request)
        for change in changes(plans.values()):
            await self._store.call("PutExecutions", change)
        for (name, one), ids in zip(plans.items(), put_ids(plans.values(), request, answer), strict=True):
            results[name] = Outcome(
                written=not one.complete,
                unresolved=one.unresolved,
                before=one.before,
                ids=ids,
                context_id=context.id,
            )
        return results

    def _forget(self) -> None:
        self._types.forget()
        self._runs.forget()


def _waves(wishes: Sequence[Wish]) -> Iterable[list[Wish]]:
    """Producers before those that read or reuse what they make, so that one look finds it."""
    left = list(wishes)
    while left:
        made = {
            output.uri: wish.record.external_id
            for wish in left
            if not wish.record.shares_outputs
            for output in wish.record.outputs
        }
        ids = {wish.record.external_id for wish in left}
        now: list[Wish] = []
        later: list[Wish] = []
        for wish in left:
            own = wish.record.external_id
            waits = wish.record.source_execution in ids - {own} or any(
                made.get(place, own) != own for place in places(wish.record)
            )
            (later if waits else now).append(wish)
        if not now:  # a circle: one step's input is another's output, and the other way round
            now, later = later, []
        yield now
        left = later
