"""The steps that an Argo Workflow's manifest asks for, one after the other, as far as they can be told.

A preview, not a controller: parameters are filled in, `steps` and `dag` templates followed, `withItems`
expanded. What depends on an output waits for whoever judges the steps: `planned_steps` is a generator that
yields a step and is sent what is known of its outputs. Expressions (`{{=...}}`), `withParam`, `withSequence`,
templates of other objects and hooks are not followed: such a step is unknown, with the reason.
"""

import json
import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memopod.steps.references import (
    ArtifactValue,
    Given,
    Produced,
    Unknown,
    Value,
    artifact_of,
    input_references,
    merged,
    of_item,
    replaced,
)

__all__ = ["BadManifest", "Given", "Known", "Planned", "Produced", "Steps", "Unknown", "planned_steps"]

Json = Any

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LEAVES = ("container", "script", "containerSet")
_NOT_FOLLOWED = ("withParam", "withSequence", "templateRef", "inline")
_NOT_COUNTED = (
    "inputs",
    "metadata",
    "podSpecPatch",
    "metrics",
    "synchronization",
    "retryStrategy",
    "timeout",
)
"""Fields of a template that no key holds, or that are filled in on their own."""
_DEEPEST = 20
_NO_RESULT = Unknown("it has no result")


class BadManifest(ValueError):
    """The manifest cannot be read. The message says where and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Outputs of a step: by name; `result` is its standard output."""

    parameters: Mapping[str, Value] = field(default_factory=dict)
    artifacts: Mapping[str, ArtifactValue] = field(default_factory=dict)
    result: Value = _NO_RESULT
    unknown: str = ""
    """Why nothing is known, for any name; empty where the mappings say it all."""

    def parameter(self, name: str) -> Value:
        """The value of an output parameter."""
        return self.parameters.get(name, Unknown(self.unknown or f"the output {name} is not declared"))

    def artifact(self, name: str) -> ArtifactValue:
        """An output artifact."""
        return self.artifacts.get(name, Unknown(self.unknown or f"the output {name} is not declared"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A step that would run: `path` names it; `template` is Argo's, filled in, or None with a reason.

    `conditional`: it runs only if its `when` holds, which is not evaluated. `differs`: it runs each
    time, whatever is known. `volumes` are the Pod's, as the manifest has them. `unclear` says which input
    parameter is not known, where nothing but the template's inputs (in Argo before 3.6) holds it.
    """

    path: str
    template: Mapping[str, Json] | None
    reason: str = ""
    artifacts: Mapping[str, Given | Produced] = field(default_factory=dict)
    wants_result: bool = False
    conditional: bool = False
    differs: bool = False
    volumes: tuple[Mapping[str, Json], ...] = ()
    unclear: str = ""


Steps = Generator[Planned, Known, Known]


def planned_steps(manifest: Mapping[str, Json], parameters: Mapping[str, str]) -> Steps:
    """The steps of a Workflow, WorkflowTemplate or CronWorkflow; `parameters` override its arguments.

    Raises BadManifest.
    """
    spec = manifest.get("spec") or {}
    if manifest.get("kind") == "CronWorkflow":
        spec = spec.get("workflowSpec") or {}
    if not isinstance(spec, Mapping) or not spec.get("entrypoint"):
        raise BadManifest("spec.entrypoint: expected the name of a template")
    arguments = spec.get("arguments") or {}
    given = {p["name"]: _text(p) for p in arguments.get("parameters") or ()}
    unknown = sorted(parameters.keys() - given.keys())
    if unknown:
        raise BadManifest(
            f"the manifest has no parameter {unknown[0]!r}; it has {', '.join(given) or 'none'}"
        )
    walk = _Walk(spec, {**given, **parameters}, text=json.dumps(spec))
    artifacts = {a["name"]: Given(a) for a in arguments.get("artifacts") or ()}
    return walk.call(
        str(spec["entrypoint"]), "", dict(walk.parameters), artifacts, conditional=False, depth=0
    )


def _text(parameter: Mapping[str, Json]) -> Value:
    value = parameter.get(
        "value", (parameter.get("valueFrom") or {}).get("default", parameter.get("default"))
    )
    if value is None:
        return Unknown(f"the parameter {parameter.get('name')} has no value; give it with -p")
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(slots=True)
class _Walk:
    spec: Mapping[str, Json]
    parameters: Mapping[str, Value]
    text: str

    def call(
        self, name: str, path: str, parameters: Mapping[str, Value], artifacts: Mapping[str, ArtifactValue],
        *, conditional: bool, depth: int, result_used: bool = False,
    ) -> Steps:  # fmt: skip
        """The steps below one template, called with these arguments; returns its outputs."""
        template = next((t for t in self.spec.get("templates") or () if t.get("name") == name), None)
        path = path or name
        if template is None:
            return (yield from self._lost(path, f"its template {name} is not in the manifest", conditional))
        if depth > _DEEPEST:
            return (yield from self._lost(path, "templates call each other too deeply", conditional))
        scope = self._scope(template, parameters)
        inputs = self._inputs(template, artifacts)
        if template.get("dag"):
            return (yield from self._dag(template, path, scope, inputs, conditional, depth))
        if template.get("steps"):
            return (yield from self._groups(template, path, scope, inputs, conditional, depth))
        planned = self._leaf(template, path, scope, inputs)
        return (yield replace(planned, wants_result=result_used, conditional=conditional))

    def _lost(self, path: str, reason: str, conditional: bool) -> Steps:
        yield Planned(path=path, template=None, reason=reason, conditional=conditional)
        return Known(unknown=f"{path} is unknown")

    def _scope(self, template: Mapping[str, Json], parameters: Mapping[str, Value]) -> dict[str, Value]:
        scope: dict[str, Value] = {f"workflow.parameters.{n}": v for n, v in self.parameters.items()}
        for parameter in (template.get("inputs") or {}).get("parameters") or ():
            name = parameter["name"]
            scope[f"inputs.parameters.{name}"] = parameters[name] if name in parameters else _text(parameter)
        return scope

    def _inputs(
        self, template: Mapping[str, Json], artifacts: Mapping[str, ArtifactValue]
    ) -> dict[str, ArtifactValue]:
        declared = (template.get("inputs") or {}).get("artifacts") or ()
        return {a["name"]: artifacts.get(a["name"], Given(a)) for a in declared}

    def _leaf(
        self, template: Mapping[str, Json], path: str, scope: Mapping[str, Value],
        inputs: Mapping[str, ArtifactValue],
    ) -> Planned:  # fmt: skip
        if not any(template.get(kind) for kind in _LEAVES):
            reason = "its template is of a kind that is never reused"
            return Planned(path=path, template=None, reason=reason, differs=True)
        filled = self._filled({k: v for k, v in template.items() if k not in _NOT_COUNTED}, scope)
        unknown = filled if isinstance(filled, Unknown) else None
        unknown = unknown or next((v for v in inputs.values() if isinstance(v, Unknown)), None)
        if isinstance(filled, Unknown) or unknown is not None:
            unknown = unknown or Unknown("")
            return Planned(path=path, template=None, reason=unknown.reason, differs=unknown.differs)
        kept = {name: value for name, value in inputs.items() if not isinstance(value, Unknown)}
        declared = (template.get("inputs") or {}).get("artifacts") or ()
        merged = [merged(artifact, kept[artifact["name"]]) for artifact in declared]
        parameters, unclear = _valued(template, scope)
        inputs_written = {"parameters": parameters, "artifacts": merged}
        whole = {
            **filled,
            "inputs": {name: value for name, value in inputs_written.items() if value},
            "metadata": self._metadata(template, scope),
        }
        return Planned(
            path=path, template=whole, artifacts=kept, volumes=self._volumes(template), unclear=unclear
        )

    def _metadata(self, template: Mapping[str, Json], scope: Mapping[str, Value]) -> Json:
        """Labels and annotations, the Workflow's for all Pods too; what is unknown stays as written."""
        common, own = self.spec.get("podMetadata") or {}, template.get("metadata") or {}
        merged = {
            field: {**(common.get(field) or {}), **(own.get(field) or {})}
            for field in ("labels", "annotations")
        }
        return {
            field: {
                name: text if isinstance(value := replaced(str(text), scope), Unknown) else value
                for name, text in entries.items()
            }
            for field, entries in merged.items()
        }

    def _volumes(self, template: Mapping[str, Json]) -> tuple[Mapping[str, Json], ...]:
        claims = [
            {"name": claim["metadata"]["name"], "persistentVolumeClaim": {}}
            for claim in self.spec.get("volumeClaimTemplates") or ()
        ]
        return (*(self.spec.get("volumes") or ()), *(template.get("volumes") or ()), *claims)

    def _filled(self, value: Json, scope: Mapping[str, Value]) -> Json | Unknown:
        """A value with its references replaced; Unknown if one of them is."""
        if isinstance(value, str):
            return replaced(value, scope)
        if isinstance(value, Mapping):
            pairs = {name: self._filled(inner, scope) for name, inner in value.items()}
            return next((v for v in pairs.values() if isinstance(v, Unknown)), pairs)
        if isinstance(value, list):
            items = [self._filled(inner, scope) for inner in value]
            return next((v for v in items if isinstance(v, Unknown)), items)
        return value

    def _dag(
        self, template: Mapping[str, Json], path: str, scope: dict[str, Value],
        inputs: Mapping[str, ArtifactValue], conditional: bool, depth: int,
    ) -> Steps:  # fmt: skip
        made: dict[str, ArtifactValue] = input_references(inputs)
        for task in _in_order(template["dag"].get("tasks") or ()):
            yield from self._member("tasks", task, path, scope, made, conditional, depth)
        return self._outputs(template, scope, made)

    def _groups(
        self, template: Mapping[str, Json], path: str, scope: dict[str, Value],
        inputs: Mapping[str, ArtifactValue], conditional: bool, depth: int,
    ) -> Steps:  # fmt: skip
        made: dict[str, ArtifactValue] = input_references(inputs)
        for group in template["steps"]:
            for step in group if isinstance(group, list) else [group]:
                yield from self._member("steps", step, path, scope, made, conditional, depth)
        return self._outputs(template, scope, made)

    def _member(
        self, kind: str, member: Mapping[str, Json], path: str, scope: dict[str, Value],
        made: dict[str, ArtifactValue], conditional: bool, depth: int,
    ) -> Generator[Planned, Known, None]:  # fmt: skip
        """A task of a DAG or a step of a group, once or for each item; its outputs enter the scope."""
        name, conditional = str(member.get("name")), conditional or bool(member.get("when"))
        own = f"{path}.{name}"
        refused = next((field for field in _NOT_FOLLOWED if member.get(field)), None)
        if refused:
            yield from self._lost(own, f"{refused} is not followed", conditional)
            known = Known(unknown=f"{own} is unknown")
        else:
            items = member.get("withItems") or [None]
            for number, item in enumerate(items):
                item_scope = {**scope, **of_item(item)}
                arguments = member.get("arguments") or {}
                parameters = {
                    p["name"]: self._argument(p, item_scope) for p in arguments.get("parameters") or ()
                }
                artifacts = {a["name"]: artifact_of(a, made) for a in arguments.get("artifacts") or ()}
                known = yield from self.call(
                    str(member.get("template")), own if item is None else f"{own}({number})", parameters,
                    artifacts, conditional=conditional, depth=depth + 1,
                    result_used=f"{kind}.{name}.outputs.result" in self.text,
                )  # fmt: skip
            if member.get("withItems"):
                known = Known(unknown=f"{own} has several items")
        if conditional:
            known = Known(unknown=f"{own} runs only under a condition")
        made[f"{kind}.{name}"] = Unknown(known.unknown) if known.unknown else Given({})
        scope |= {f"{kind}.{name}.outputs.parameters.{n}": v for n, v in known.parameters.items()}
        made |= {f"{kind}.{name}.outputs.artifacts.{n}": v for n, v in known.artifacts.items()}
        scope[f"{kind}.{name}.outputs.result"] = Unknown(known.unknown) if known.unknown else known.result
        scope[f"{kind}.{name}"] = Unknown(known.unknown or f"{own} has no such output")

    def _argument(self, parameter: Mapping[str, Json], scope: Mapping[str, Value]) -> Value:
        value = _text(parameter)
        return value if isinstance(value, Unknown) else replaced(value, scope)

    def _outputs(
        self, template: Mapping[str, Json], scope: Mapping[str, Value], made: Mapping[str, ArtifactValue]
    ) -> Known:
        outputs = template.get("outputs") or {}
        parameters = {
            p["name"]: replaced(str((p.get("valueFrom") or {}).get("parameter", "{{}}")), scope)
            for p in outputs.get("parameters") or ()
        }
        artifacts = {a["name"]: artifact_of(a, made) for a in outputs.get("artifacts") or ()}
        return Known(parameters=parameters, artifacts=artifacts)


def _valued(template: Mapping[str, Json], scope: Mapping[str, Value]) -> tuple[list[Json], str]:
    """A template's input parameters with their values, as Argo writes them; and why one has none."""
    valued, unclear = [], ""
    for parameter in (template.get("inputs") or {}).get("parameters") or ():
        value = scope[f"inputs.parameters.{parameter['name']}"]
        if isinstance(value, Unknown):
            unclear = unclear or value.reason
        else:
            valued.append({**parameter, "value": value})
    return valued, unclear


def _in_order(tasks: Iterable[Mapping[str, Json]]) -> list[Mapping[str, Json]]:
    """Tasks of a DAG, each after those that it names in `depends` or `dependencies`. Raises BadManifest."""
    waiting = {str(task.get("name")): task for task in tasks}
    ordered: list[Mapping[str, Json]] = []
    while waiting:
        ready = [n for n, t in waiting.items() if not (_needs(t) & waiting.keys()) - {n}]
        if not ready:
            raise BadManifest(f"the tasks {', '.join(sorted(waiting))} wait for each other")
        ordered += [waiting.pop(name) for name in ready]
    return ordered


def _needs(task: Mapping[str, Json]) -> set[str]:
    return {*_NAME.findall(str(task.get("depends") or "")), *(task.get("dependencies") or ())}
