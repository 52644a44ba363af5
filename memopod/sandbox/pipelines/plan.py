"""What a pipeline runs: its tasks in order, each input traced to where its value comes from.

Nested DAGs are flattened: a task of a DAG `outer` is `outer.inner`, waits for all that `outer` waits
for, and its inputs point at constants, parameters of the run or outputs of other containers.
"""

import graphlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memopod.sandbox.pipelines import placeholders
from memopod.sandbox.pipelines.errors import PipelineError
from memopod.sandbox.pipelines.ir import Place, load
from memopod.sandbox.pipelines.values import TYPES, typed

_MAX_DEPTH = 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Constant:
    """A value of the file."""

    value: Any


@dataclass(frozen=True, slots=True)
class FromRun:
    """A parameter of the run; `fallback` where it is optional and was not given."""

    name: str
    fallback: Any = None


@dataclass(frozen=True, slots=True)
class FromTask:
    """An output of another task."""

    task: str
    output: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Text with other values in it (an f-string of the pipeline's author)."""

    parts: "tuple[str | Source, ...]"


Source = Constant | FromRun | FromTask | Joined


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the run: its type (one of `values.TYPES`), default and whether it may be absent."""

    kind: str
    default: Any = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """A parameter that a task gets; `source` None means that nothing is given."""

    kind: str
    source: Source | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact that a task gets, and its schema (`schemaTitle`, `schemaVersion`)."""

    schema: Mapping[str, str]
    source: FromTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One container to run. `name` is its path through nested DAGs, joined by dots."""

    name: str
    template: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    cached: bool
    parameters: Mapping[str, Input] = field(default_factory=dict)
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    output_parameters: Mapping[str, str] = field(default_factory=dict)
    output_artifacts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    after: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A pipeline, ready to run. `tasks` are in an order in which they could run one by one.

    `outputs` are the pipeline's parameters, `output_artifacts` its artifacts; `notices` say what of
    the file is ignored.
    """

    name: str
    parameters: Mapping[str, Parameter]
    tasks: tuple[Task, ...]
    outputs: Mapping[str, Source]
    output_artifacts: Mapping[str, FromTask]
    notices: tuple[str, ...] = ()


@dataclass(slots=True)
class _Scope:
    """What the tasks of one DAG can refer to."""

    path: tuple[str, ...]
    parameters: dict[str, Source]
    artifacts: dict[str, FromTask]
    after: frozenset[str]


@dataclass(slots=True)
class _Done:
    """What a task (container or DAG) gives to its neighbours."""

    leaves: frozenset[str]
    parameters: dict[str, Source]
    artifacts: dict[str, FromTask]


def read_pipeline(path: Path) -> Plan:
    """Read and check a pipeline file. Raises PipelineError, which names the offending place."""
    spec, notices = load(path)
    return _Reader(spec, notices).plan()


class _Reader:
    def __init__(self, spec: Place, notices: Iterable[str]) -> None:
        self._spec = spec
        self._components = spec.get("components")
        self._executors = spec.need("deploymentSpec").get("executors")
        self._notices = list(notices)
        self._tasks: list[Task] = []
        self._templates: set[str] = set()

    def plan(self) -> Plan:
        root = self._spec.need("root")
        definitions = root.get("inputDefinitions")
        for name, place in definitions.get("artifacts").entries():
            if not place.get("isOptional").value:
                raise place.error(
                    f"the pipeline wants the artifact {name!r}; runs in the sandbox take parameters only"
                )
        parameters = {
            name: _parameter(name, place) for name, place in definitions.get("parameters").entries()
        }
        scope = _Scope((), {name: FromRun(name) for name in parameters}, {}, frozenset())
        done = self._dag(root.need("dag"), scope)
        return Plan(
            name=self._spec.need("pipelineInfo").need("name").text(),
            parameters=parameters,
            tasks=tuple(self._tasks),
            outputs=done.parameters,
            output_artifacts=done.artifacts,
            notices=tuple(dict.fromkeys(self._notices)),
        )

    def _dag(self, dag: Place, scope: _Scope) -> _Done:
        if len(scope.path) > _MAX_DEPTH:
            raise dag.error(f"DAGs are nested more than {_MAX_DEPTH} deep")
        tasks = dict(dag.need("tasks").entries())
        if not tasks:
            raise dag.error("there is no task in it")
        needs = {name: _needs(place, tasks) for name, place in tasks.items()}
        try:
            order = list(graphlib.TopologicalSorter(needs).static_order())
        except graphlib.CycleError as error:
            raise dag.error(f"its tasks wait for each other: {' -> '.join(error.args[1])}") from error
        done: dict[str, _Done] = {}
        for name in order:
            _checked(name, tasks[name])
            done[name] = self._task(name, tasks[name], scope, done, needs[name])
        outputs = dag.get("outputs")
        return _Done(
            leaves=frozenset().union(*(d.leaves for d in done.values())),
            parameters={n: _output_parameter(p, done) for n, p in outputs.get("parameters").entries()},
            artifacts={n: _output_artifact(p, done) for n, p in outputs.get("artifacts").entries()},
        )

    def _task(self, name: str, task: Place, scope: _Scope, done: dict[str, _Done], needs: set[str]) -> _Done:
        path = (*scope.path, name)
        _refuse(".".join(path), task)
        self._notice(".".join(path), task)
        component = self._component(task)
        after = scope.after.union(*(done[other].leaves for other in needs))
        parameters = self._inputs(task, component, scope, done)
        artifacts = _input_artifacts(task, component, scope, done)
        if "dag" in component:
            inner = _Scope(
                path,
                {n: i.source for n, i in parameters.items() if i.source is not None},
                {n: a.source for n, a in artifacts.items()},
                after,
            )
            return self._dag(component.need("dag"), inner)
        leaf = self._leaf(path, task, component, after, parameters, artifacts)
        self._tasks.append(leaf)
        return _Done(
            leaves=frozenset({leaf.name}),
            parameters={n: FromTask(leaf.name, n) for n in leaf.output_parameters},
            artifacts={n: FromTask(leaf.name, n) for n in leaf.output_artifacts},
        )

    def _notice(self, name: str, task: Place) -> None:
        if "retryPolicy" in task:
            self._notices.append(f"task {name!r}: its retry policy is ignored: a step is tried once")
        if task.get("cachingOptions").get("cacheKey").value:
            self._notices.append(f"task {name!r}: its cache key is ignored: a step is known by what it runs")

    def _component(self, task: Place) -> Place:
        reference = task.need("componentRef").need("name")
        component = self._components.get(reference.text())
        if component.value is None:
            raise reference.error(f"there is no component {reference.value!r}")
        return component

    def _inputs(
        self, task: Place, component: Place, scope: _Scope, done: dict[str, _Done]
    ) -> dict[str, Input]:
        given = dict(task.get("inputs").get("parameters").entries())
        sources = {name: _source(place, scope, done) for name, place in given.items()}
        sources = {name: _with_placeholders(source, sources, given[name]) for name, source in sources.items()}
        inputs = {}
        for name, place in component.get("inputDefinitions").get("parameters").entries():
            definition = _parameter(name, place)
            source = sources.get(name)
            if source is None and definition.default is not None:
                source = Constant(definition.default)
            elif isinstance(source, FromRun) and source.fallback is None:
                source = replace(source, fallback=definition.default)
            if source is None and not definition.optional:
                raise task.error(f"the input {name!r} of {component.path} is not given")
            if isinstance(source, Constant):
                source = Constant(_constant(source.value, definition.kind, given.get(name, place)))
            inputs[name] = Input(definition.kind, source)
        unknown = sorted(set(given) - set(inputs))
        if unknown:
            raise given[unknown[0]].error(f"{component.path} has no input of this name")
        return inputs

    def _leaf(
        self,
        path: tuple[str, ...],
        task: Place,
        component: Place,
        after: frozenset[str],
        parameters: dict[str, Input],
        artifacts: dict[str, Artifact],
    ) -> Task:
        name = ".".join(path)
        label = component.need("executorLabel")
        executor = self._executors.get(label.text())
        if executor.value is None:
            raise label.error(f"there is no executor {label.value!r} in deploymentSpec.executors")
        for other in ("importer", "resolver", "customJob"):
            if other in executor:
                raise PipelineError(
                    f"task {name!r}", f"the sandbox runs no {other} ({executor.path}), only containers"
                )
        container = executor.need("container")
        outputs = component.get("outputDefinitions")
        leaf = Task(
            name=name,
            template=self._template("-".join(path)),
            image=container.need("image").text(),
            command=tuple(word.text() for word in container.get("command").elements()),
            args=tuple(word.text() for word in container.get("args").elements()),
            env=tuple(
                (e.need("name").text(), e.get("value").value or "") for e in container.get("env").elements()
            ),
            resources=_resources(container.get("resources")),
            cached=task.get("cachingOptions").get("enableCache").value is True,
            parameters=parameters,
            artifacts=artifacts,
            output_parameters={n: _parameter(n, p).kind for n, p in outputs.get("parameters").entries()},
            output_artifacts={n: _schema(n, p) for n, p in outputs.get("artifacts").entries()},
            after=after,
        )
        if not leaf.command:
            raise container.error("a command is missing: the sandbox does not know the image's own")
        _check_placeholders(leaf, container)
        return leaf

    def _template(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._templates or name == "root":
            number += 1
            name = f"{wanted}-{number}"
        self._templates.add(name)
        return name


def _checked(name: str, place: Place) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise place.error(f"the name {name!r} holds more than letters, digits, '_', '-' and '.'")
    return name


def _parameter(name: str, place: Place) -> Parameter:
    _checked(name, place)
    kind = place.need("parameterType").text()
    if kind not in TYPES:
        raise place.error(f"the sandbox knows no parameter type {kind!r} (known: {', '.join(TYPES)})")
    default = place.get("defaultValue").value
    if default is not None:
        default = _constant(default, kind, place.get("defaultValue"))
    return Parameter(kind, default, bool(place.get("isOptional").value))


def _constant(value: Any, kind: str, place: Place) -> Any:
    try:
        return typed(value, kind)
    except ValueError as error:
        raise place.error(str(error)) from None


def _schema(name: str, place: Place) -> Mapping[str, str]:
    _checked(name, place)
    if place.get("isArtifactList").value:
        raise place.error("lists of artifacts are not supported")
    return {key: str(value.value) for key, value in place.get("artifactType").entries()}


def _needs(task: Place, siblings: Mapping[str, Place]) -> set[str]:
    inputs = task.get("inputs")
    places = [(p.text(), p) for p in task.get("dependentTasks").elements()]
    for what, key in (("parameters", "taskOutputParameter"), ("artifacts", "taskOutputArtifact")):
        for _, given in inputs.get(what).entries():
            if key in given:
                producer = given.need(key).need("producerTask")
                places.append((producer.text(), producer))
    for name, place in places:
        if name not in siblings:
            raise place.error(f"there is no task {name!r} in this DAG")
    return {name for name, _ in places}


def _refuse(name: str, task: Place) -> None:
    where = f"task {name!r} ({task.path})"
    if {"parameterIterator", "artifactIterator"} & task.mapping().keys():
        raise PipelineError(where, "loops are not supported")
    trigger = task.get("triggerPolicy")
    final_status = any("taskFinalStatus" in p for _, p in task.get("inputs").get("parameters").entries())
    if trigger.get("strategy").value == "ALL_UPSTREAM_TASKS_COMPLETED" or final_status:
        raise PipelineError(where, "exit handlers and tasks that ignore failures are not supported")
    if "condition" in trigger:
        raise PipelineError(where, "conditions are not supported")


def _source(place: Place, scope: _Scope, done: Mapping[str, _Done]) -> Source | None:
    if "componentInputParameter" in place:
        name = place.need("componentInputParameter").text()
        source = scope.parameters.get(name)
        if source is None and not scope.path:
            raise place.error(f"the pipeline has no parameter {name!r}")
        return source
    if "taskOutputParameter" in place:
        output = place.need("taskOutputParameter")
        producer, key = output.need("producerTask").text(), output.need("outputParameterKey").text()
        if key not in done[producer].parameters:
            raise output.error(f"the task {producer!r} has no output parameter {key!r}")
        return done[producer].parameters[key]
    if "runtimeValue" in place:
        return Constant(place.need("runtimeValue").need("constant").value)
    raise place.error("expected componentInputParameter, taskOutputParameter or runtimeValue.constant")


def _with_placeholders(
    source: Source | None, siblings: Mapping[str, Source | None], place: Place
) -> Source | None:
    """A constant may hold `{{$.inputs.parameters['other']}}`, which is another input of the same task."""
    if not isinstance(source, Constant) or not isinstance(source.value, str):
        return source
    pieces = list(placeholders.split(source.value, place.path))
    if all(isinstance(piece, str) for piece in pieces):
        return source
    parts: list[str | Source] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
            continue
        other = siblings.get(piece.name)
        nested = isinstance(other, Constant) and "{{$" in str(other.value)
        if (piece.side, piece.what) != ("inputs", "parameters") or other is None or nested:
            raise place.error("a constant may refer to the task's other input parameters only")
        parts.append(other)
    return Joined(tuple(parts))


def _input_artifacts(
    task: Place, component: Place, scope: _Scope, done: Mapping[str, _Done]
) -> dict[str, Artifact]:
    given = dict(task.get("inputs").get("artifacts").entries())
    definitions = dict(component.get("inputDefinitions").get("artifacts").entries())
    for name, place in given.items():
        if name not in definitions:
            raise place.error(f"{component.path} has no input artifact of this name")
    found = {}
    for name, definition in definitions.items():
        schema = _schema(name, definition)
        source = _artifact_source(given[name], scope, done) if name in given else None
        if source is not None:
            found[name] = Artifact(schema, source)
        elif not definition.get("isOptional").value:
            raise task.error(f"the input artifact {name!r} of {component.path} is not given")
    return found


def _artifact_source(place: Place, scope: _Scope, done: Mapping[str, _Done]) -> FromTask | None:
    if "componentInputArtifact" in place:
        return scope.artifacts.get(place.need("componentInputArtifact").text())
    output = place.need("taskOutputArtifact")
    producer, key = output.need("producerTask").text(), output.need("outputArtifactKey").text()
    if key not in done[producer].artifacts:
        raise output.error(f"the task {producer!r} has no output artifact {key!r}")
    return done[producer].artifacts[key]


def _output_parameter(place: Place, done: Mapping[str, _Done]) -> Source:
    if "valueFromParameter" not in place:
        raise place.error("expected valueFromParameter (values of one of several tasks need conditions)")
    chosen = place.need("valueFromParameter")
    producer, key = chosen.need("producerSubtask"), chosen.need("outputParameterKey")
    if producer.text() not in done or key.text() not in done[producer.text()].parameters:
        raise chosen.error(f"there is no task {producer.value!r} with an output parameter {key.value!r}")
    return done[producer.text()].parameters[key.text()]


def _output_artifact(place: Place, done: Mapping[str, _Done]) -> FromTask:
    selectors = list(place.need("artifactSelectors").elements())
    if len(selectors) != 1:
        raise place.error(f"expected one artifact selector, got {len(selectors)}")
    producer, key = selectors[0].need("producerSubtask"), selectors[0].need("outputArtifactKey")
    if producer.text() not in done or key.text() not in done[producer.text()].artifacts:
        raise selectors[0].error(f"there is no task {producer.value!r} with an output artifact {key.value!r}")
    return done[producer.text()].artifacts[key.text()]


def _resources(place: Place) -> dict[str, Any]:
    """Requests and limits as a container states them; older and newer field names of the schema."""
    wanted = {
        ("requests", "cpu"): ("resourceCpuRequest", "cpuRequest", ""),
        ("limits", "cpu"): ("resourceCpuLimit", "cpuLimit", ""),
        ("requests", "memory"): ("resourceMemoryRequest", "memoryRequest", "G"),
        ("limits", "memory"): ("resourceMemoryLimit", "memoryLimit", "G"),
    }
    resources: dict[str, dict[str, str]] = {}
    for (group, name), (newer, older, unit) in wanted.items():
        if newer in place:
            resources.setdefault(group, {})[name] = str(place.get(newer).value)
        elif older in place:
            resources.setdefault(group, {})[name] = f"{place.get(older).value}{unit}"
    accelerator = place.get("accelerator")
    kind = accelerator.get("resourceType").value or accelerator.get("type").value
    if kind:
        count = accelerator.get("resourceCount").value or accelerator.get("count").value or 1
        resources.setdefault("limits", {})[str(kind)] = str(count)
    return resources


def _check_placeholders(task: Task, container: Place) -> None:
    names = {
        ("inputs", "parameters"): task.parameters.keys(),
        ("inputs", "artifacts"): task.artifacts.keys(),
        ("outputs", "parameters"): task.output_parameters.keys(),
        ("outputs", "artifacts"): task.output_artifacts.keys(),
    }
    places = {"command": task.command, "args": task.args, "env": [text for _, text in task.env]}
    for what, texts in places.items():
        for index, text in enumerate(texts):
            place = f"{container.path}.{what}[{index}]"
            structured = placeholders.structured_word(text)
            pieces = [text] if structured is None else list(placeholders.structured_texts(structured))
            for reference in (r for piece in pieces for r in placeholders.references(piece, place)):
                known = reference.side == "" or reference.name in names[reference.side, reference.what]
                if not known and structured is None:
                    raise PipelineError(
                        place, f"{reference.side} has no {reference.what[:-1]} {reference.name!r}"
                    )
