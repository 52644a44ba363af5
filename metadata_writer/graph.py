"""How a step joins the graph in the store: from what is known of both to one PutLineageSubgraph. Pure.

The store has no "put if absent" for executions and events: an execution whose `external_id` exists,
or an event that exists, makes it refuse the whole call. So the recorder asks first, and what is
written here is the difference. The order in which a step's states are seen does not matter: a later
state outranks an earlier one, a Pod outranks the Workflow's word, and nothing is taken away.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import to_value
from metadata_writer.records import Run, State, StepRecord, Value

_CACHED_ID = "cached_execution_id"
"""Custom property of an execution: the store's id of the one that really ran."""
_UNRESOLVED_INPUTS = "unresolved_inputs"
_UNRESOLVED_OUTPUTS = "unresolved_outputs"
"""Custom properties of an execution: names of artifacts that the store does not know, comma separated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeIds:
    """The store's ids of the types that a record needs."""

    run: int
    execution: int
    artifacts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the store said about a step: MLMD messages.

    `source` is the execution whose outputs the step reuses, `source_outputs` its output artifacts
    by the names of their events, `by_uri` the artifacts that are at the places the record names.
    """

    execution: Any | None = None
    events: Sequence[Any] = ()
    source: Any | None = None
    source_outputs: Sequence[tuple[str, Any]] = ()
    by_uri: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`request` is None when the store has everything already.

    `unresolved` are the names of artifacts that the store does not know (yet).
    """

    request: Any | None
    unresolved: tuple[str, ...] = ()


def awaits_source(record: StepRecord, known: Known) -> bool:
    """Whether the run that a reused step takes its outputs from is not recorded, or not in full."""
    if record.source_execution is None:
        return False
    if known.source is None:
        return True
    return any(_of_source(known, output.name, output.uri) is None for output in record.outputs)


def presumed_source(record: StepRecord, by_uri: Mapping[str, Sequence[Any]]) -> str | None:
    """Identity of the step that made a reused step's outputs, where no Pod is left to name it.

    An artifact's `external_id` begins with its producer's.
    """
    if not record.shares_outputs:
        return None
    for output in record.outputs:
        artifact = newest(by_uri.get(output.uri, ()), record.run)
        if artifact is not None and artifact.external_id:
            return str(artifact.external_id).rpartition("/")[0]
    return None


def newest(artifacts: Iterable[Any], run: Run) -> Any | None:
    """Of the artifacts at one place: those of the same workflow first, live ones first, the newest."""
    own = f"{run.workflow_uid}/"
    return max(
        artifacts,
        key=lambda a: (a.external_id.startswith(own), a.state == mlmd.Artifact.LIVE, a.id),
        default=None,
    )


def plan(record: StepRecord, known: Known, types: TypeIds) -> Plan:
    """What is missing in the store of one step."""
    state = _next_state(record, _state(known.execution))
    edges = _Edges(record, known, types, shares_outputs=state is State.CACHED)
    edges.join_inputs()
    edges.join_outputs()
    execution = _execution(record, known, types, state)
    _note(execution, _UNRESOLVED_INPUTS, edges.unresolved_inputs)
    _note(execution, _UNRESOLVED_OUTPUTS, edges.unresolved_outputs)
    unresolved = (*edges.unresolved_inputs, *edges.unresolved_outputs)
    if execution == known.execution and not edges.events:
        return Plan(request=None, unresolved=unresolved)
    request = service.PutLineageSubgraphRequest(
        executions=[execution], artifacts=edges.artifacts, contexts=[_context(record, types)]
    )
    for index, event in enumerate(edges.events):
        request.event_edges.add(execution_index=0, artifact_index=index, event=event)
    request.options.reuse_context_if_already_exist = True
    request.options.reuse_artifact_if_already_exist_by_external_id = True
    return Plan(request=request, unresolved=unresolved)


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
        self.unresolved_inputs: list[str] = []
        self.unresolved_outputs: list[str] = []

    def join_inputs(self) -> None:
        names: dict[int, list[str]] = {}
        found: dict[int, Any] = {}
        for item in self._record.inputs:
            if (mlmd.Event.INPUT, item.name) in self._named:
                continue
            artifact = newest(self._known.by_uri.get(item.uri, ()), self._record.run)
            if artifact is None:
                self.unresolved_inputs.append(item.name)
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
                continue
            shared = _of_source(self._known, output.name, output.uri)
            if shared is None:
                shared = newest(self._known.by_uri.get(output.uri, ()), self._record.run)
            if shared is None:
                self.unresolved_outputs.append(output.name)
            else:
                self._join(shared, mlmd.Event.OUTPUT, [output.name], "finished_at")

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
        execution.type_id = types.execution
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
    named = record.source_execution is not None  # else it is presumed, which overrules nothing
    if state is State.CACHED and known.source is not None and (named or _CACHED_ID not in custom):
        custom[_CACHED_ID].int_value = known.source.id
    return execution


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


def _context(record: StepRecord, types: TypeIds) -> Any:
    # The store finds it by type and name and then leaves it as it is: a workflow of the same name in
    # another namespace, or made again later, shares it, as with Kubeflow's writer.
    context = mlmd.Context(type_id=types.run, name=record.run.name)
    _assign(context.properties, {"pipeline_name": record.run.name, "run_id": record.run.name})
    custom = {"namespace": record.run.namespace, "workflow_uid": record.run.workflow_uid}
    _assign(context.custom_properties, custom)
    return context


def _note(execution: Any, name: str, unresolved: Sequence[str]) -> None:
    execution.custom_properties.pop(name, None)
    if unresolved:
        execution.custom_properties[name].string_value = ",".join(sorted(unresolved))


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
