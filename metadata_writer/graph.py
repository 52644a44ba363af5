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

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import to_value
from metadata_writer.records import State, StepRecord, Value

_CACHED_ID = "cached_execution_id"
"""Custom property of an execution: the store's id of the one that really ran."""
UNRESOLVED_INPUTS: Final = "unresolved_inputs"
UNRESOLVED_OUTPUTS: Final = "unresolved_outputs"
"""Custom properties of an execution: names of artifacts that the store does not know, comma separated."""
PLACES: Final = {UNRESOLVED_INPUTS: "unresolved_input_uris", UNRESOLVED_OUTPUTS: "unresolved_output_uris"}
"""And beside each another, a JSON object of those names and places: a step whose Pod is gone is joined
to its artifacts from there, once they are known."""
_CLOCKS_DIFFER = 2000
"""Milliseconds: two machines of a cluster are seldom further apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeIds:
    """The store's ids of the types that some records need."""

    run: int
    pipeline: int
    executions: Mapping[str, int]
    artifacts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the store said about a step: MLMD messages.

    `source` is the execution whose outputs the step reuses, `source_outputs` its output artifacts
    by the names of their events, `by_uri` the artifacts that are at the places the record names, and
    `makers` the executions that made those, by external id.
    """

    execution: Any | None = None
    events: Sequence[Any] = ()
    source: Any | None = None
    source_outputs: Sequence[tuple[str, Any]] = ()
    by_uri: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    makers: Mapping[str, Any] = field(default_factory=dict)


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


def awaits_source(record: StepRecord, known: Known) -> bool:
    """Whether the run that a reused step takes its outputs from is not recorded, or not in full."""
    if record.source_execution is None:
        return False
    if known.source is None:
        return True
    return any(_of_source(known, output.name, output.uri) is None for output in record.outputs)


def presumed_source(
    record: StepRecord, by_uri: Mapping[str, Sequence[Any]], makers: Mapping[str, Any]
) -> str | None:
    """Identity of the step that made a reused step's outputs, where no Pod is left to name it."""
    if not record.shares_outputs:
        return None
    for output in record.outputs:
        artifact = read_by(record, by_uri.get(output.uri, ()), makers)
        if artifact is not None and artifact.external_id:
            return maker_of(artifact)
    return None


def maker_of(artifact: Any) -> str:
    """Identity of the step that made an artifact, with which its `external_id` begins; else empty."""
    return str(artifact.external_id).rpartition("/")[0]


def read_by(record: StepRecord, artifacts: Iterable[Any], makers: Mapping[str, Any]) -> Any | None:
    """Of the artifacts that were put at one place, the one that a step read there.

    A place may be written again and again: it is the last whose maker ended before the step started.
    Where times do not tell, the own run's comes first, then a live one. Machines' clocks differ: one
    made a moment too late is still better than none.
    """
    started = record.custom.get("started_at")
    own = f"{record.run.workflow_uid}/"
    timely, late = [], []
    for artifact in artifacts:
        made = _made_at(artifact, makers)
        is_own = artifact.external_id.startswith(own)
        if not isinstance(started, int) or made <= started:
            timely.append((made, is_own, _is_live(artifact), artifact.id, artifact))
        elif made <= started + _CLOCKS_DIFFER:
            late.append((made, artifact.id, artifact))
    if timely:
        return max(timely, key=lambda item: item[:4])[-1]
    return min(late, key=lambda item: item[:2])[-1] if late else None


def _made_at(artifact: Any, makers: Mapping[str, Any]) -> int:
    """Milliseconds since the epoch, 0 where nobody noted it."""
    maker = makers.get(maker_of(artifact))
    if maker is None or "finished_at" not in maker.custom_properties:
        return 0
    value = maker.custom_properties["finished_at"]
    return int(value.double_value or value.int_value)


def _is_live(artifact: Any) -> bool:
    return bool(artifact.state == mlmd.Artifact.LIVE)


def plan(record: StepRecord, known: Known, types: TypeIds) -> Plan:
    """What is missing in the store of one step."""
    stored = _state(known.execution)
    state = _next_state(record, stored)
    edges = _Edges(record, known, types, shares_outputs=state is State.CACHED)
    edges.join_inputs()
    edges.join_outputs()
    unresolved = (*edges.unresolved_inputs, *edges.unresolved_outputs)
    execution: Any | None = None
    if stored is None or record.state.finished:
        execution = _execution(record, known, types, state)
        _note(execution, UNRESOLVED_INPUTS, edges.unresolved_inputs)
        _note(execution, UNRESOLVED_OUTPUTS, edges.unresolved_outputs)
        if execution == known.execution:
            execution = None
    return Plan(
        execution=execution,
        execution_id=known.execution.id if known.execution is not None else 0,
        fields=_changed(execution, known.execution) if stored is not None and stored.finished else (),
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


class _Edges:
    """The events that the store lacks, and the artifact at the other end of each.

    A known artifact is sent as the store gave it: that leaves it as it is, and attributes it to the run.
    """

    def __init__(self, record: StepRecord, known: Known, types: TypeIds, *, shares_outputs: bool) -> None:
        self._record = record
        self._shares_outputs = shares_outputs
        self._known = known
        self._types = types
        self._joined = {(event.type, event.artifact_id) for event in known.events}
        self._named = {(event.type, key) for event in known.events for key in event_names(event)}
        self.artifacts: list[Any] = []
        self.events: list[Any] = []
        self.unresolved_inputs: dict[str, str] = {}
        self.unresolved_outputs: dict[str, str] = {}

    def join_inputs(self) -> None:
        names: dict[int, list[str]] = {}
        found: dict[int, Any] = {}
        for item in self._record.inputs:
            if (mlmd.Event.INPUT, item.name) in self._named:
                continue
            artifact = self._at(item.uri)
            if artifact is None:
                self.unresolved_inputs[item.name] = item.uri
            else:
                found[artifact.id] = artifact
                names.setdefault(artifact.id, []).append(item.name)
        for artifact_id, artifact in found.items():
            self._join(artifact, mlmd.Event.INPUT, names[artifact_id], "started_at")

    def join_outputs(self) -> None:
        for output in self._record.outputs:
            if (mlmd.Event.OUTPUT, output.name) in self._named:
                continue
            if not self._shares_outputs:
                made = self._make(output.type_name, output.name, output.uri, output.custom)
                self._join(made, mlmd.Event.OUTPUT, [output.name], "finished_at")
                self._named.add((mlmd.Event.OUTPUT, output.name))  # the store refuses a second event
                continue
            shared = _of_source(self._known, output.name, output.uri)
            if shared is None:
                shared = self._at(output.uri)
            if shared is None:
                self.unresolved_outputs[output.name] = output.uri
            else:
                self._join(shared, mlmd.Event.OUTPUT, [output.name], "finished_at")

    def _at(self, uri: str) -> Any | None:
        return read_by(self._record, self._known.by_uri.get(uri, ()), self._known.makers)

    def _make(self, type_name: str, name: str, uri: str, custom: Mapping[str, Value]) -> Any:
        artifact = mlmd.Artifact(
            type_id=self._types.artifacts[type_name],
            uri=uri,
            external_id=f"{self._record.external_id}/{name}",
            state=mlmd.Artifact.LIVE,
        )
        _assign(artifact.custom_properties, custom)
        return artifact

    def _join(self, artifact: Any, kind: int, names: Sequence[str], time: str) -> None:
        if artifact.id and (kind, artifact.id) in self._joined:
            return
        self._joined.add((kind, artifact.id))
        event = mlmd.Event(type=kind)
        for name in names:
            event.path.steps.add(key=name)
        moment = self._record.custom.get(time)
        if isinstance(moment, int):
            event.milliseconds_since_epoch = moment
        self.artifacts.append(artifact)
        self.events.append(event)


def event_names(event: Any) -> list[str]:
    """The names under which an event joins its artifact; several where a step reads one artifact twice."""
    return [step.key for step in event.path.steps if step.HasField("key")]


def _of_source(known: Known, name: str, uri: str) -> Any | None:
    matching = [(key, artifact) for key, artifact in known.source_outputs if artifact.uri == uri]
    named = next((artifact for key, artifact in matching if key == name), None)
    return named or next((artifact for _, artifact in matching), None)


def _execution(record: StepRecord, known: Known, types: TypeIds, state: State) -> Any:
    execution = mlmd.Execution()
    if known.execution is not None:
        execution.CopyFrom(known.execution)
    else:
        execution.type_id = types.executions[record.type_name]
        execution.external_id = record.external_id
    stored = _state(known.execution)
    overrule = record.from_pod and (stored is None or record.state.rank >= stored.rank)
    execution.last_known_state = mlmd.Execution.State.Value(state.value)
    properties = {
        "pipeline_name": record.run.name,
        "run_id": record.run.name,
        "component_id": record.component_id,
    }
    _assign(execution.properties, properties, overrule=overrule)
    custom = execution.custom_properties
    _assign(custom, record.custom, overrule=overrule)
    if record.run.pipeline is not None:
        custom["pipeline"].string_value = record.run.pipeline
    named = record.source_execution is not None  # else it is presumed, which overrules nothing
    if state is State.CACHED and known.source is not None and (named or _CACHED_ID not in custom):
        custom[_CACHED_ID].int_value = known.source.id
    return execution


def _changed(execution: Any | None, stored: Any) -> tuple[str, ...]:
    """The fields in which an execution differs from what is stored, as an update mask names them.

    None for one whose pipeline became known: only a whole one is associated with a context.
    """
    if execution is None or ("pipeline" in execution.custom_properties) != (
        "pipeline" in stored.custom_properties
    ):
        return ()
    fields = [] if execution.last_known_state == stored.last_known_state else ["last_known_state"]
    for kind in ("properties", "custom_properties"):
        new, old = getattr(execution, kind), getattr(stored, kind)
        fields += [
            f"{kind}.{name}"
            for name in sorted({*new, *old})
            if (name in new) != (name in old) or new[name] != old[name]
        ]
    return tuple(fields)


def _state(execution: Any | None) -> State | None:
    if execution is None:
        return None
    name = mlmd.Execution.State.Name(execution.last_known_state)
    return State[name] if name in State.__members__ else None


def _next_state(record: StepRecord, stored: State | None) -> State:
    if stored is None:
        return record.state
    if record.from_pod:
        return max(stored, record.state, key=lambda state: state.rank)
    if stored.finished:
        return stored
    # A Pod was seen to run, so it was not spared, whatever the Workflow forgot to say.
    return State.COMPLETE if record.state is State.CACHED else record.state


def _note(execution: Any, name: str, unresolved: Mapping[str, str]) -> None:
    custom = execution.custom_properties
    custom.pop(name, None)
    custom.pop(PLACES[name], None)
    if unresolved:
        custom[name].string_value = ",".join(sorted(unresolved))
        custom[PLACES[name]].string_value = json.dumps(unresolved, sort_keys=True)


def _assign(target: Any, values: Mapping[str, Value], *, overrule: bool = True) -> None:
    for name, value in values.items():
        if not overrule and name in target:
            continue
        target[name].CopyFrom(to_value(_portable(value)))


def _portable(value: Value) -> Value:
    """A value that every database holds: MLMD's tables on MySQL and PostgreSQL have 32-bit integers.

    Larger ones (times in milliseconds, sizes) become doubles, exact to 53 bits, and beyond that text.
    """
    if isinstance(value, bool) or not isinstance(value, int) or -(2**31) <= value < 2**31:
        return value
    return float(value) if abs(value) <= 2**53 else str(value)
