"""Reads Kubeflow Pipelines IR (schema 2.1.0) and says what has to run, in which order, with what.

`read_pipeline` turns a file into a `Plan`: a flat list of tasks, nested DAGs resolved, each input
traced to the constant, the run's parameter or the task that gives it. `parse_parameters` checks what
a run is given; `render` fills a task's command with a run's values. All of it is pure but for
reading the file.
"""

from memopod.sandbox.pipelines.errors import PipelineError
from memopod.sandbox.pipelines.ir import load
from memopod.sandbox.pipelines.placeholders import Rendered, render
from memopod.sandbox.pipelines.plan import (
    Artifact,
    Constant,
    FromRun,
    FromTask,
    Parameter,
    Plan,
    Source,
    Task,
    read_pipeline,
)
from memopod.sandbox.pipelines.values import as_text, from_text, parse_parameters

__all__ = [
    "Artifact",
    "Constant",
    "FromRun",
    "FromTask",
    "Parameter",
    "PipelineError",
    "Plan",
    "Rendered",
    "Source",
    "Task",
    "as_text",
    "from_text",
    "load",
    "parse_parameters",
    "read_pipeline",
    "render",
]
