"""Down: what depends on a node."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from memopod.lineage import records, values
from memopod.lineage.found import Found, made
from memopod.lineage.model import Artifact, Direction, Execution, Node, Parameter, Relation, State
from memopod.lineage.reader import Reader
from memopod.lineage.references import Start, parameter


class Down:
    """The search for what depends on a node."""

    direction = Direction.DOWN

    def __init__(self, reader: Reader, start: Start, *, same_values: bool) -> None:
        self.found = Found(reader, start, same_values=same_values)

    async def neighbours(self, keys: Sequence[str]) -> Iterable[str]:
        """The executions and parameters that depend on these nodes directly."""
        nodes = [self.found.nodes[key] for key in keys]
        artifacts = {node.id: node for node in nodes if isinstance(node, Artifact)}
        executions = [node for node in nodes if isinstance(node, Execution)]
        for execution in executions:
            self.found.gap(execution, "output", execution.unresolved_outputs)
        after: list[Node] = [
            *await self._users(artifacts, runs=None),
            *await self._of_parameters([node for node in nodes if isinstance(node, Parameter)]),
            *await self._through_outputs(executions),
            *await self._through_reuse(executions),
            *await self.found.same_values(executions, self.direction),
        ]
        return [self.found.node(node) for node in after]

    async def _through_outputs(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        events = await self.found.outputs_of(by_id)
        artifacts = await self.found.reader.artifacts(event.artifact_id for event in events)
        everywhere: set[int] = set()
        runs: dict[int, set[str]] = defaultdict(set)
        for event in events:
            execution, artifact = by_id[event.execution_id], artifacts.get(event.artifact_id)
            if artifact is None:
                continue
            self.found.edge(execution, artifact, made(execution), records.event_name(event))
            runs[artifact.id].add(execution.run)
            if execution.state is not State.CACHED:
                everywhere.add(artifact.id)
        only_here = {number: found for number, found in artifacts.items() if number not in everywhere}
        return [
            *await self._users({number: artifacts[number] for number in everywhere}, runs=None),
            *await self._users(only_here, runs=runs),
        ]

    async def _users(
        self, artifacts: dict[int, Artifact], *, runs: dict[int, set[str]] | None
    ) -> list[Execution]:
        """The executions that used these artifacts: all, or those of the runs given for each."""
        after = []
        for event, user in await self.found.users(artifacts):
            if runs is not None and user.run not in runs[event.artifact_id]:
                continue
            self.found.edge(artifacts[event.artifact_id], user, Relation.USED, records.event_name(event))
            after.append(user)
        return after

    async def _through_reuse(self, executions: Sequence[Execution]) -> list[Execution]:
        by_id = {execution.id: execution for execution in executions}
        reusers = await self.found.reader.reusers(by_id)
        for reuser in reusers:
            self.found.edge(by_id[reuser.cached_execution_id or 0], reuser, Relation.REUSED)
        return reusers

    async def _of_parameters(self, parameters: Sequence[Parameter]) -> list[Node]:
        """The steps whose input has the parameter's value, and the same parameter of those that reused it."""
        by_writer = {value.execution_id: value for value in parameters}
        writers = await self.found.executions(by_writer)
        after: list[Node] = []
        matches = await self.found.matches(writer.run for writer in writers.values())
        targets = await self.found.executions(match.target for match in matches if _written(match, by_writer))
        for match in matches:
            if _written(match, by_writer):
                target = targets[match.target]
                self.found.edge(by_writer[match.source], target, Relation.SAME_VALUE, match.input)
                after.append(target)
        for reuser in await self.found.reader.reusers(by_writer):
            value = by_writer[reuser.cached_execution_id or 0]
            if value.name in reuser.outputs:
                twin = parameter(reuser, value.name)
                self.found.edge(value, twin, Relation.REUSED)
                after.append(twin)
        return after


def _written(match: values.Match, by_writer: dict[int, Parameter]) -> bool:
    value = by_writer.get(match.source)
    return value is not None and value.name == match.output
