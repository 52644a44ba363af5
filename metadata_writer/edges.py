"""The events that the store lacks of a step, and the artifacts at their other ends. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_metadata.proto import metadata_store_pb2 as mlmd

from metadata_writer.executions import assign
from metadata_writer.known import Known, TypeIds
from metadata_writer.provenance import event_names, of_source, read_by
from metadata_writer.records import StepRecord, Value


class Edges:
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
        """Join what the step read."""
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
        """Join what the step put out, or shares."""
        for output in self._record.outputs:
            if (mlmd.Event.OUTPUT, output.name) in self._named:
                continue
            if not self._shares_outputs:
                made = self._make(output.type_name, output.name, output.uri, output.custom)
                self._join(made, mlmd.Event.OUTPUT, [output.name], "finished_at")
                self._named.add((mlmd.Event.OUTPUT, output.name))  # the store refuses a second event
                continue
            shared = of_source(self._known, output.name, output.uri)
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
        assign(artifact.custom_properties, custom)
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
