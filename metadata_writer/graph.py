"""How steps join the graph in the store: from what is known of both to one PutLineageSubgraph. Pure.

The store has no "put if absent" for executions and events: an execution whose `external_id` exists,
or an event that exists, makes it refuse the whole call. So the recorder asks first, and what is
written here is the difference. The order in which a step's states are seen does not matter: a later
state outranks an earlier one, a Pod outranks the Workflow's word, and nothing is taken away.

The store cannot compare and swap either: an execution that is put replaces what another writer may
have put since it was read. So a step that has not ended is put once, as new, and then left alone but
for events, which only ever add. One that has ended is changed property by property, and its state only
to a later one: no writer, however far behind, takes a finished step back.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from metadata_writer.edges import Edges
from metadata_writer.executions import changed, execution_of, next_state, state_of
from metadata_writer.known import Known, TypeIds
from metadata_writer.notes import UNRESOLVED_INPUTS, UNRESOLVED_OUTPUTS, note
from metadata_writer.provenance import event_names
from metadata_writer.records import State, StepRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the store lacks of one step: MLMD messages, one of `artifacts` for each of `events`.

    `execution` is None where it stays as it is under `execution_id`; of one that has ended only the
    `fields` are put, named as in MLMD's update masks. `known` are the events that are there, and `before`
    the state. `unresolved` are the names of artifacts that the store does not know (yet).
    """

    execution: Any | None
    execution_id: int
    fields: tuple[str, ...] = ()
    artifacts: Sequence[Any]
    events: Sequence[Any]
    known: Sequence[Any] = ()
    before: State | None = None
    unresolved: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the store has everything already."""
        return self.execution is None and not self.events

    @property
    def as_a_whole(self) -> Any | None:
        """The execution that goes with its events into one put, None where that is not to be put so."""
        return None if self.fields else self.execution


def plan(record: StepRecord, known: Known, types: TypeIds) -> Plan:
    """What is missing in the store of one step."""
    stored = state_of(known.execution)
    state = next_state(record, stored)
    edges = Edges(record, known, types, shares_outputs=state is State.CACHED)
    edges.join_inputs()
    edges.join_outputs()
    unresolved = (*edges.unresolved_inputs, *edges.unresolved_outputs)
    execution: Any | None = None
    if stored is None or record.state.finished:
        execution = execution_of(record, known, types, state)
        note(execution, UNRESOLVED_INPUTS, edges.unresolved_inputs)
        note(execution, UNRESOLVED_OUTPUTS, edges.unresolved_outputs)
        if execution == known.execution:
            execution = None
    return Plan(
        execution=execution,
        execution_id=known.execution.id if known.execution is not None else 0,
        fields=changed(execution, known.execution) if stored is not None and stored.finished else (),
        artifacts=edges.artifacts,
        events=edges.events,
        known=known.events,
        before=stored,
        unresolved=unresolved,
    )


def join(plans: Iterable[Plan], contexts: Iterable[Any]) -> Any:
    """One PutLineageSubgraph for steps that share all `contexts`: the store associates each with all."""
    request = service.PutLineageSubgraphRequest(contexts=contexts)
    at: dict[str | int, int] = {}
    for one in plans:
        execution_index = None
        if one.as_a_whole is not None:
            execution_index = len(request.executions)
            request.executions.append(one.as_a_whole)
        for artifact, event in zip(one.artifacts, one.events, strict=True):
            index = at.setdefault(artifact.id or artifact.external_id, len(request.artifacts))
            if index == len(request.artifacts):
                request.artifacts.append(artifact)
            edge = request.event_edges.add(artifact_index=index, event=event)
            if execution_index is None:
                edge.event.execution_id = one.execution_id
            else:
                edge.execution_index = execution_index
    request.options.reuse_context_if_already_exist = True
    request.options.reuse_artifact_if_already_exist_by_external_id = True
    return request


def changes(plans: Iterable[Plan]) -> Iterator[Any]:
    """A PutExecutions for each set of fields that change of executions that have ended.

    The whole execution is in it: a store from before update masks puts that.
    """
    by_fields: dict[tuple[str, ...], list[Any]] = {}
    for one in plans:
        if one.fields:
            by_fields.setdefault(one.fields, []).append(one.execution)
    for fields, executions in by_fields.items():
        request = service.PutExecutionsRequest(executions=executions)
        request.update_mask.paths.extend(fields)
        yield request


@dataclass(slots=True)
class Ids:
    """The store's ids of a step's execution, and of its artifacts by the names that it gave them."""

    execution: int
    inputs: dict[str, int]
    outputs: dict[str, int]

    def add(self, event: Any, artifact_id: int) -> None:
        """Take one event in; kinds that others write are passed over."""
        by_name = {mlmd.Event.INPUT: self.inputs, mlmd.Event.OUTPUT: self.outputs}.get(event.type)
        if by_name is not None:
            by_name.update(dict.fromkeys(event_names(event), artifact_id))


def put_ids(plans: Iterable[Plan], request: Any, answer: Any) -> Iterator[Ids]:
    """The ids of each plan that `request` joined, given the store's answer to it."""
    executions, edges = iter(answer.execution_ids), iter(request.event_edges)
    for one in plans:
        ids = Ids(one.execution_id if one.as_a_whole is None else next(executions), {}, {})
        for event in one.known:
            ids.add(event, event.artifact_id)
        for event in one.events:
            ids.add(event, answer.artifact_ids[next(edges).artifact_index])
        yield ids
