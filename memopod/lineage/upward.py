"""Up: where a node comes from."""

from collections.abc import Iterable, Sequence

from memopod.lineage import records
from memopod.lineage.found import Found, made
from memopod.lineage.model import Artifact, Direction, Execution, Parameter, Relation, State
from memopod.lineage.reader import Reader
from memopod.lineage.references import Start


class Up:
    """The search for what a node comes from."""

    direction = Direction.UP

    def __init__(self, reader: Reader, start: Start, *, same_values: bool) -> None:
        self.found = Found(reader, start, same_values=same_values)

    async def neighbours(self, keys: Sequence[str]) -> Iterable[str]:
        """The executions that these nodes come from directly."""
        nodes = [self.found.nodes[key] for key in keys]
        before = [
            *await self._of_artifacts([n for n in nodes if isinstance(n, Artifact)]),
            *await self._of_parameters([n for n in nodes if isinstance(n, Parameter)]),
            *await self._of_executions([n for n in nodes if isinstance(n, Execution)]),
        ]
        return [self.found.node(execution) for execution in before]

    async def _of_artifacts(self, artifacts: Sequence[Artifact]) -> list[Execution]:
        start = self.found.start
        if start.through is not None and artifacts:
            self.found.edge(start.through, artifacts[0], made(start.through), start.output)
            return [start.through]
        producers = await self.found.producers([artifact.id for artifact in artifacts])
        before = []
        for artifact in artifacts:
            for producer, name in _origin(producers[artifact.id], run=""):
                self.found.edge(producer, artifact, made(producer), name)
                before.append(producer)
        return before

    async def _of_parameters(self, parameters: Sequence[Parameter]) -> list[Execution]:
        writers = await self.found.executions(value.execution_id for value in parameters)
        for value in parameters:
            writer = writers[value.execution_id]
            self.found.edge(writer, value, made(writer), value.name)
        return list(writers.values())

    async def _of_executions(self, executions: Sequence[Execution]) -> list[Execution]:
        for execution in executions:
            self.found.gap(execution, "input", execution.unresolved_inputs)
        return [
            *await self._through_inputs(executions),
            *await self._through_reuse(executions),
            *await self.found.same_values(executions, self.direction),
        ]

    async def _through_inputs(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        events = await self.found.inputs_of(by_id)
        artifacts = await self.found.reader.artifacts(event.artifact_id for event in events)
        producers = await self.found.producers(artifacts)
        before = []
        for event in events:
            user, artifact = by_id[event.execution_id], artifacts.get(event.artifact_id)
            if artifact is None:
                continue
            self.found.edge(artifact, user, Relation.USED, records.event_name(event))
            for producer, name in _origin(producers[artifact.id], run=user.run):
                self.found.edge(producer, artifact, made(producer), name)
                before.append(producer)
        return before

    async def _through_reuse(self, executions: Sequence[Execution]) -> list[Execution]:
        reused = [execution for execution in executions if execution.cached_execution_id is not None]
        origins = await self.found.executions(
            execution.cached_execution_id for execution in reused if execution.cached_execution_id
        )
        before = []
        for execution in reused:
            origin = origins.get(execution.cached_execution_id or 0)
            if origin is not None:
                self.found.edge(origin, execution, Relation.REUSED)
                before.append(origin)
        return before + await self._through_outputs(
            [e for e in executions if e.state is State.CACHED and e.cached_execution_id not in origins]
        )

    async def _through_outputs(self, executions: Sequence[Execution]) -> list[Execution]:
        """For reused executions that don't name what they reused: who really produced their outputs."""
        by_id = {execution.id: execution for execution in executions}
        events = await self.found.outputs_of(by_id)
        producers = await self.found.producers(event.artifact_id for event in events)
        before = []
        for event in events:
            for producer, _ in producers[event.artifact_id]:
                if producer.state is not State.CACHED:
                    self.found.edge(producer, by_id[event.execution_id], Relation.REUSED)
                    before.append(producer)
        return before


def _origin(producers: Sequence[tuple[Execution, str]], *, run: str) -> list[tuple[Execution, str]]:
    """Of all that an artifact is an output of, what a user in `run` has it from."""
    here = [made for made in producers if made[0].state is State.CACHED and run and made[0].run == run]
    ran = [made for made in producers if made[0].state is not State.CACHED]
    return here or ran or list(producers)
