"""Which artifact a step read, and whose outputs a reused step shares. Pure, of MLMD messages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd

from metadata_writer.known import Known
from metadata_writer.records import StepRecord

_CLOCKS_DIFFER = 2000
"""Milliseconds: two machines of a cluster are seldom further apart."""


def awaits_source(record: StepRecord, known: Known) -> bool:
    """Whether the run that a reused step takes its outputs from is not recorded, or not in full."""
    if record.source_execution is None:
        return False
    if known.source is None:
        return True
    return any(of_source(known, output.name, output.uri) is None for output in record.outputs)


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


def event_names(event: Any) -> list[str]:
    """The names under which an event joins its artifact; several where a step reads one artifact twice."""
    return [step.key for step in event.path.steps if step.HasField("key")]


def of_source(known: Known, name: str, uri: str) -> Any | None:
    """The output of the step that is reused: the one of that place and name, else of that place."""
    matching = [(key, artifact) for key, artifact in known.source_outputs if artifact.uri == uri]
    named = next((artifact for key, artifact in matching if key == name), None)
    return named or next((artifact for _, artifact in matching), None)
