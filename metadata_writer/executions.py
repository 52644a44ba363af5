"""The execution of a step: what of it the store lacks, and what is never taken back. Pure."""

from collections.abc import Mapping
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.mlmd import to_value
from metadata_writer.known import CACHED_ID, Known, TypeIds
from metadata_writer.notes import UNRESOLVED_SOURCE
from metadata_writer.records import State, StepRecord, Value


def execution_of(record: StepRecord, known: Known, types: TypeIds, state: State) -> Any:
    """The execution as it is to be: what is stored, and what the record adds to it or knows better."""
    execution = mlmd.Execution()
    if known.execution is not None:
        execution.CopyFrom(known.execution)
    else:
        execution.type_id = types.executions[record.type_name]
        execution.external_id = record.external_id
    stored = state_of(known.execution)
    overrule = record.from_pod and (stored is None or record.state.rank >= stored.rank)
    execution.last_known_state = mlmd.Execution.State.Value(state.value)
    properties = {
        "pipeline_name": record.run.name,
        "run_id": record.run.name,
        "component_id": record.component_id,
    }
    assign(execution.properties, properties, overrule=overrule)
    custom = execution.custom_properties
    assign(custom, record.custom, overrule=overrule)
    if record.run.pipeline is not None:
        custom["pipeline"].string_value = record.run.pipeline
    named = record.source_execution is not None  # else it is presumed, which overrules nothing
    if state is State.CACHED and known.source is not None and (named or CACHED_ID not in custom):
        custom[CACHED_ID].int_value = known.source.id
    if record.source_execution is not None:
        custom.pop(UNRESOLVED_SOURCE, None)
        if known.source is None:
            custom[UNRESOLVED_SOURCE].string_value = record.source_execution
    return execution


def changed(execution: Any | None, stored: Any) -> tuple[str, ...]:
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


def state_of(execution: Any | None) -> State | None:
    """The state of a stored execution, None where it has none of ours."""
    if execution is None:
        return None
    name = mlmd.Execution.State.Name(execution.last_known_state)
    return State[name] if name in State.__members__ else None


def next_state(record: StepRecord, stored: State | None) -> State:
    """The state to store: a later one outranks an earlier one, a Pod the Workflow's word."""
    if stored is None:
        return record.state
    if record.from_pod:
        return max(stored, record.state, key=lambda state: state.rank)
    if stored.finished:
        return stored
    # A Pod was seen to run, so it was not spared, whatever the Workflow forgot to say.
    return State.COMPLETE if record.state is State.CACHED else record.state


def assign(target: Any, values: Mapping[str, Value], *, overrule: bool = True) -> None:
    """Set properties; what is there stays unless `overrule`."""
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
