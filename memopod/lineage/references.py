"""How a user names a node, and finding the node of that name.

run/step           the execution of a step
run/step:output    an output of it: an artifact or a parameter
execution:12       an execution by its id in the store; execution:12:output one of its outputs
artifact:7         an artifact by its id in the store
minio://bucket/key an artifact by its location
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ml_metadata.proto import metadata_store_pb2 as mlmd

from memopod.lineage import records
from memopod.lineage.errors import Ambiguous, BadReference, NotRecorded, listed
from memopod.lineage.model import Artifact, Execution, Node, Parameter
from memopod.lineage.reader import Reader

FORMS = "run/step, run/step:output, execution:ID, artifact:ID or an artifact's uri"
"""What a reference may look like, for messages."""

_BY_ID = re.compile(r"(execution|artifact):(\d{1,18})(?::(.+))?")
_RECENT = 200
"""How many of the latest runs are looked through for similar names."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a question starts. `through` is the execution by whose output `output` the user named it."""

    node: Node
    through: Execution | None = None
    output: str = ""


async def resolve(reader: Reader, reference: str) -> Start:
    """The node that `reference` names.

    Raises BadReference, NotRecorded or Ambiguous.
    """
    if by_id := _BY_ID.fullmatch(reference):
        kind, number, output = by_id.groups()
        if kind == "execution":
            return await _execution_by_id(reader, int(number), output)
        if output is None:
            return await _artifact_by_id(reader, int(number))
    if "://" in reference:
        return await _artifact_by_uri(reader, reference)
    run, slash, step = reference.partition("/")
    if reference.startswith(("execution:", "artifact:")) or not run or (slash and not step):
        raise BadReference(f"{reference!r} names no node: expected {FORMS}")
    steps = await _steps(reader, run)
    if not slash:
        names = [f"{run}/{execution.step}" for execution in steps]
        raise BadReference(f"{run!r} is a run; name a step of it: {listed(names) or '(it has none yet)'}")
    return await _in_run(reader, run, step, steps)


async def find_run(reader: Reader, name: str) -> mlmd.Context:
    """The context of a run. Raises NotRecorded, with the nearest names."""
    context = await reader.run(name)
    if context is None:
        recent, _ = await reader.runs(limit=_RECENT)
        nearest = near(name, [run.name for run in recent])
        raise NotRecorded(f"run {name!r}", nearest=nearest, advice="see `memopod lineage runs`")
    return context


def near(name: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that `name` may have meant: the ones it is the beginning of, then similar ones."""
    unique = list(dict.fromkeys(names))
    longer = [other for other in unique if name and other.startswith(name)]
    similar = difflib.get_close_matches(name, unique, n=5, cutoff=0.6)
    return list(dict.fromkeys([*longer, *similar]))


async def _steps(reader: Reader, run: str) -> list[Execution]:
    executions, _ = await reader.executions_of(await find_run(reader, run))
    return executions


async def _in_run(reader: Reader, run: str, step: str, steps: Sequence[Execution]) -> Start:
    """`step` may hold colons itself, as the steps of Argo's loops do: `train(0:a)`."""
    found = [execution for execution in steps if execution.step == step]
    output = ""
    if not found and ":" in step:
        step, _, output = step.rpartition(":")
        found = [execution for execution in steps if execution.step == step]
    if not found:
        nearest = near(step, [execution.step for execution in steps])
        raise NotRecorded(
            f"step {step!r} of run {run!r}",
            nearest=[f"{run}/{name}" for name in nearest],
            advice=f"see `memopod lineage show {run}`",
        )
    if len(found) > 1:
        suffix = f":{output}" if output else ""
        raise Ambiguous(f"{run}/{step}{suffix}", [execution.key + suffix for execution in found])
    return await _output(reader, found[0], output) if output else Start(found[0])


async def _execution_by_id(reader: Reader, number: int, output: str | None) -> Start:
    found = (await reader.executions([number])).get(number)
    if found is None:
        raise NotRecorded(f"execution {number}", advice="see `memopod lineage runs`")
    return await _output(reader, found, output) if output else Start(found)


async def _artifact_by_id(reader: Reader, number: int) -> Start:
    found = (await reader.artifacts([number])).get(number)
    if found is None:
        raise NotRecorded(f"artifact {number}", advice="see `memopod lineage show RUN`")
    return Start(found)


async def _artifact_by_uri(reader: Reader, uri: str) -> Start:
    found = await reader.artifacts_at(uri)
    if not found:
        raise NotRecorded(f"an artifact at {uri!r}", advice="see `memopod lineage show RUN`")
    if len(found) > 1:
        raise Ambiguous(uri, [artifact.key for artifact in found])
    return Start(found[0])


async def _output(reader: Reader, execution: Execution, output: str) -> Start:
    events = await reader.events_of_executions([execution.id])
    written = [event for event in events if event.type in records.OUTPUT_EVENTS]
    artifacts = await reader.artifacts(event.artifact_id for event in written)
    candidates: dict[str, Node] = {}
    names = list(execution.outputs)
    for event in written:
        artifact = artifacts.get(event.artifact_id)
        if artifact is not None:
            names += records.event_names(event) or (artifact.name,)
            if output in {*records.event_names(event), artifact.name}:
                candidates[artifact.key] = artifact
    if output in execution.outputs:
        value = parameter(execution, output)
        candidates[value.key] = value
    if not candidates:
        raise NotRecorded(
            f"output {output!r} of {execution.title}",
            nearest=[f"{execution.title}:{name}" for name in near(output, names) or names],
            advice="it has no outputs",
        )
    artifacts_named = [node for node in candidates.values() if isinstance(node, Artifact)]
    if len(candidates) > 1 and len(artifacts_named) != 1:
        raise Ambiguous(f"{execution.title}:{output}", list(candidates))
    # An artifact and a parameter of one name: the artifact is the node that the store knows.
    node = artifacts_named[0] if artifacts_named else next(iter(candidates.values()))
    return Start(node, through=execution, output=output)


def parameter(execution: Execution, name: str) -> Parameter:
    """The output parameter of an execution as a node."""
    return Parameter(
        execution_id=execution.id,
        name=name,
        value=execution.outputs[name],
        title=f"{execution.title}:{name}",
    )
