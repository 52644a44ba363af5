"""Argo's templates: of one step, its inputs filled in, and of the whole pipeline, for people to read."""

import json
from collections.abc import Mapping
from typing import Any

from memopod.sandbox.pipelines import Plan, Rendered, Task
from memopod.sandbox.pipelines.placeholders import path_of
from memopod.steps import names


def container_template(
    task: Task,
    rendered: Rendered,
    locations: Mapping[str, Mapping[str, Any]],
    *,
    parameters: Mapping[str, str],
    archive: Mapping[str, Any],
    cached: bool,
) -> dict[str, Any]:
    """The template of a task's step, ready to run.

    `locations` are its input artifacts as their producers reported them, `parameters` its inputs as
    text, `archive` the `archiveLocation`, which a template has only where there are artifacts.
    """
    inputs: dict[str, Any] = {}
    if parameters:
        inputs["parameters"] = [{"name": name, "value": value} for name, value in parameters.items()]
    if locations:
        inputs["artifacts"] = [_input_artifact(name, location) for name, location in locations.items()]
    template = _template(task, inputs, cached=cached)
    template["container"] = _container(task, rendered)
    if task.artifacts or task.output_artifacts:
        template["archiveLocation"] = dict(archive)
    return template


def _input_artifact(name: str, reported: Mapping[str, Any]) -> dict[str, Any]:
    location = {key: value for key, value in reported.items() if key not in {"name", "path", "artifactGC"}}
    return {"name": name, "path": path_of("inputs", "artifacts", name), **location}


def _template(task: Task, inputs: Mapping[str, Any], *, cached: bool) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    if task.output_parameters:
        outputs["parameters"] = [
            {"name": name, "valueFrom": {"path": path_of("outputs", "parameters", name)}}
            for name in task.output_parameters
        ]
    if task.output_artifacts:
        outputs["artifacts"] = [
            {"name": name, "path": path_of("outputs", "artifacts", name), "archive": {"none": {}}}
            for name in task.output_artifacts
        ]
    metadata: dict[str, Any] = {"labels": {names.OPT_IN_LABEL: "true"}} if cached else {}
    types = {n: schema.get("schemaTitle") for n, schema in task.output_artifacts.items()}
    if types:
        metadata["annotations"] = {names.OUTPUT_TYPES: json.dumps(types, sort_keys=True)}
    return {"name": task.template, "inputs": dict(inputs), "outputs": outputs, "metadata": metadata}


def _container(task: Task, rendered: Rendered) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "", "image": task.image, "command": list(rendered.command)}
    if rendered.args:
        container["args"] = list(rendered.args)
    if rendered.env:
        container["env"] = [{"name": name, "value": value} for name, value in rendered.env]
    container["resources"] = dict(task.resources)
    return container


def pipeline_templates(plan: Plan, *, cached: bool) -> list[dict[str, Any]]:
    """The templates of a Workflow's `spec`: the DAG, and each task as the pipeline's author wrote it."""
    dag_tasks = []
    templates: list[dict[str, Any]] = []
    for task in plan.tasks:
        entry: dict[str, Any] = {
            "name": task.name.replace(".", "-"),
            "template": task.template,
            "arguments": {},
        }
        if task.after:
            entry["depends"] = " && ".join(sorted(name.replace(".", "-") for name in task.after))
        dag_tasks.append(entry)
        inputs: dict[str, Any] = {}
        if task.parameters:
            inputs["parameters"] = [{"name": name} for name in task.parameters]
        if task.artifacts:
            inputs["artifacts"] = [
                {"name": name, "path": path_of("inputs", "artifacts", name)} for name in task.artifacts
            ]
        template = _template(task, inputs, cached=cached and task.cached)
        template["container"] = _container(task, Rendered(task.command, task.args, task.env))
        templates.append(template)
    root = {"name": "root", "inputs": {}, "outputs": {}, "metadata": {}, "dag": {"tasks": dag_tasks}}
    return [root, *templates]
