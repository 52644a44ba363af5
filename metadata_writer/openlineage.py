"""The same facts as OpenLineage run events: START, COMPLETE or FAIL, with facets. Pure.

A step is a run of the job `<workflow template or workflow>.<task>`; its artifacts are datasets, named by
their place as OpenLineage names those of object stores. Event shapes are those of the client library.
"""

import dataclasses
import uuid
from datetime import UTC, datetime
from typing import Any, Final

import attr
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    RunFacet,
    error_message_run,
    job_type_job,
    nominal_time_run,
    output_statistics_output_dataset,
    parent_run,
)
from openlineage.client.serde import Serde

from memopod import __version__
from metadata_writer.records import State, StepRecord

PRODUCER: Final = f"https://memopod.io/metadata-writer/{__version__}"
"""Names who made an event; no page is there."""
_STATES: Final = {
    State.RUNNING: RunState.START,
    State.COMPLETE: RunState.COMPLETE,
    State.CACHED: RunState.COMPLETE,
    State.FAILED: RunState.FAIL,
    State.CANCELED: RunState.ABORT,
}


@attr.define
class StepRunFacet(RunFacet):
    """What only a pipeline step has: where it ran, and whether it ran at all."""

    state: str = attr.field(default="")
    namespace: str = attr.field(default="")
    workflow: str = attr.field(default="")
    pod: str | None = attr.field(default=None)
    image: str | None = attr.field(default=None)
    fingerprint: str | None = attr.field(default=None)
    cachedFrom: str | None = attr.field(default=None)  # noqa: N815 (a name in JSON)


def events(record: StepRecord, before: State | None) -> list[dict[str, Any]]:
    """The events of a record, given the state that was known before: each run starts once and ends once.

    What becomes known of a step after its end is an event of the kind OTHER, but for a success after a
    failure: `argo retry` ran it again.
    """
    said = [event(record)]
    if before is None and record.state.finished:
        said.insert(0, event(dataclasses.replace(record, state=State.RUNNING, outputs=())))
    elif before is not None and record.state.rank <= before.rank:
        said[0]["eventType"] = str(RunState.OTHER.value)
    return said


def event(record: StepRecord) -> dict[str, Any]:
    """The event of a record's state, as JSON values."""
    name = str(record.custom.get("display_name") or record.component_id)
    state = _STATES[record.state]
    begun = _time(record, "started_at")
    ended = _time(record, "finished_at") if record.state.finished else None
    run = RunEvent(
        eventType=state,
        eventTime=(ended or begun or datetime.now(UTC)).isoformat(),
        run=Run(runId=run_id(record.external_id), facets=_run_facets(record, begun, ended)),
        job=Job(
            namespace=record.run.namespace or "default",
            name=f"{record.run.name}.{name}",
            facets={
                "jobType": job_type_job.JobTypeJobFacet(
                    processingType="BATCH", integration="ARGO", jobType="STEP", producer=PRODUCER
                )
            },
        ),
        producer=PRODUCER,
        inputs=[InputDataset(*_dataset(item.uri)) for item in record.inputs],
        outputs=[_output(item.uri, item.custom.get("size")) for item in record.outputs],
    )
    return dict(Serde.to_dict(run))


def run_id(external_id: str) -> str:
    """The same for all events of a step, whoever sends them."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"memopod:{external_id}"))


def _run_facets(record: StepRecord, begun: datetime | None, ended: datetime | None) -> dict[str, Any]:
    custom = {name: str(value) for name, value in record.custom.items()}
    parent = parent_run.ParentRunFacet(
        run=parent_run.Run(runId=run_id(record.run.workflow_uid)),
        job=parent_run.Job(namespace=record.run.namespace or "default", name=record.run.name),
        producer=PRODUCER,
    )
    facets: dict[str, Any] = {
        "parent": parent,
        "memopod_step": StepRunFacet(
            state=record.state.value,
            namespace=record.run.namespace,
            workflow=record.run.name,
            pod=custom.get("kfp_pod_name"),
            image=custom.get("image_id") or custom.get("image"),
            fingerprint=custom.get("fingerprint"),
            cachedFrom=record.source_execution,
            producer=PRODUCER,
        ),
    }
    if begun is not None:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(
            nominalStartTime=begun.isoformat(),
            nominalEndTime=ended.isoformat() if ended is not None else None,
            producer=PRODUCER,
        )
    if record.state is State.FAILED:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message="the step failed", programmingLanguage="unknown", producer=PRODUCER
        )
    return facets


def _output(uri: str, size: Any) -> OutputDataset:
    facets: dict[str, Any] = {}
    if isinstance(size, int):
        facets["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            size=size, producer=PRODUCER
        )
    namespace, name = _dataset(uri)
    return OutputDataset(namespace, name, outputFacets=facets)


def _dataset(uri: str) -> tuple[str, str]:
    """Namespace and name: scheme and bucket, and the key."""
    # Not as a URL: a key may hold "?" and "#", and a bucket is whatever a step says.
    scheme, separator, place = uri.partition("://")
    if not separator:
        return "://", uri.lstrip("/") or "/"
    bucket, _, key = place.partition("/")
    return f"{scheme}://{bucket}", key.lstrip("/") or "/"


def _time(record: StepRecord, name: str) -> datetime | None:
    milliseconds = record.custom.get(name)
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if isinstance(milliseconds, int) else None
