"""The steps of a pipeline file as the sandbox would run them, one after the other, for a preview."""

from collections.abc import Mapping
from typing import Any

from memopod.sandbox.argo import archive_location, container_template
from memopod.sandbox.pipelines import FromTask, PipelineError, Plan, Source, Task, as_text, from_text, render
from memopod.sandbox.runner.step import BadValue, Given, StepState
from memopod.steps.manifest import Known, Planned, Produced, Steps

_NAME = "preview"


def pipeline_steps(plan: Plan, parameters: Mapping[str, Any]) -> Steps:
    """Yields each step, and is sent what is known of its outputs; those that read others are unknown."""
    states = {task.name: StepState.begin(_NAME, task, ()) for task in plan.tasks}
    produced: dict[tuple[str, str], Produced] = {}
    unknown: dict[str, str] = {}
    given = Given(parameters, states)
    for task in plan.tasks:
        missing = next((unknown[name] for name in sorted(_read(task)) if name in unknown), None)
        planned = Planned(path=task.name, template=None, reason=missing or "")
        if missing is None:
            planned = _planned(task, given, produced)
        known = yield planned
        if known.unknown:
            unknown[task.name] = known.unknown
            continue
        state = states[task.name]
        for name, kind in task.output_parameters.items():
            state.values[name] = from_text(str(known.parameters[name]), kind)
        for name, artifact in known.artifacts.items():
            if isinstance(artifact, Produced):
                state.artifacts[name] = artifact.artifact.reported
                produced[task.name, name] = artifact
    return Known()


def _planned(task: Task, given: Given, produced: Mapping[tuple[str, str], Produced]) -> Planned:
    try:
        inputs, locations = given.inputs(task), given.locations(task)
        template = container_template(
            task, render(task, inputs, locations), locations,
            parameters={name: as_text(value) for name, value in inputs.items()},
            archive=archive_location(_NAME, _NAME), cached=task.cached,
        )  # fmt: skip
    except (PipelineError, BadValue) as error:
        return Planned(path=task.name, template=None, reason=str(error))
    artifacts = {
        name: produced[wanted.source.task, wanted.source.output] for name, wanted in task.artifacts.items()
    }
    return Planned(path=task.name, template=template, artifacts=artifacts)


def _read(task: Task) -> set[str]:
    """Names of the tasks whose outputs a task reads."""
    sources: list[Source | None] = [i.source for i in task.parameters.values()]
    sources += [artifact.source for artifact in task.artifacts.values()]
    found: set[str] = set()
    while sources:
        source = sources.pop()
        if isinstance(source, FromTask):
            found.add(source.task)
        sources += [part for part in getattr(source, "parts", ()) if not isinstance(part, str)]
    return found
