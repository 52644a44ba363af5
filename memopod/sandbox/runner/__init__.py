"""Plays Argo's workflow-controller for one run of a pipeline.

`Run` creates the Workflow and, in the order of the DAG, its Pods; it follows Pods and
WorkflowTaskResults with informers and hands each step's outputs to the next. It never starts
anything itself and never decides about reuse: whoever finishes a Pod, kubelet or cache server, looks
the same from here. `RunResult` is what came of it.
"""

from memopod.sandbox.runner.planned import pipeline_steps
from memopod.sandbox.runner.results import RunResult, TaskOutcome, log_tail
from memopod.sandbox.runner.run import Run, TaskView

__all__ = ["Run", "RunResult", "TaskOutcome", "TaskView", "log_tail", "pipeline_steps"]
