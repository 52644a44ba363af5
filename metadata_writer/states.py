"""How far a step is: pure, from its Pod and its node in the Workflow."""

import re
from collections.abc import Mapping
from typing import Any, Final

from memopod.steps import Step, names
from metadata_writer.records import State

_STOPPED: Final = re.compile(r"(shutdown|stopped) with strategy", re.IGNORECASE)
_FULFILLED: Final = frozenset({"Succeeded", "Failed", "Error"})
_BY_THE_AGENT: Final = frozenset({"HTTP", "Plugin"})
"""Types of nodes that Argo's agent runs: they have no Pod of their own."""
_CARRIED_OVER: Final = "original pod: "
"""How the message of a node begins that `argo resubmit --memoized` took over from an earlier run."""


def is_step(node: Mapping[str, Any]) -> bool:
    """Whether a node is a step that is recorded: not a group of some, and not one that `when` left out."""
    kind = node.get("type")
    return kind == "Pod" or kind in _BY_THE_AGENT or is_carried_over(node)


def is_carried_over(node: Mapping[str, Any]) -> bool:
    """Whether a node was not run since it had succeeded in the run that was submitted again."""
    return node.get("type") == "Skipped" and str(node.get("message") or "").startswith(_CARRIED_OVER)


def has_begun(step: Step, closed: Mapping[str, Any] | None) -> bool:
    """Whether there is anything to record yet: a held or pending step has not begun.

    `closed` is what `closing_node` says.
    """
    return _pod_phase(step) == "Running" or has_finished(step, closed)


def has_finished(step: Step, closed: Mapping[str, Any] | None) -> bool:
    """Whether the step has ended, well or not. `closed` is what `closing_node` says."""
    return _pod_phase(step) in {"Succeeded", "Failed"} or closed is not None


def closing_node(node: Mapping[str, Any] | None, *, pod_gone: bool) -> Mapping[str, Any] | None:
    """The node of a step, where its word on how the step ended counts besides the Pod's; else None.

    The watches of Pods and Workflows are not ordered. A Pod that is still there will say itself that
    it succeeded, and only it says whether that was by reuse.
    """
    if node is None or not is_fulfilled(node):
        return None
    return node if pod_gone or node.get("phase") != "Succeeded" else None


def is_fulfilled(node: Mapping[str, Any] | None) -> bool:
    """Whether Argo has closed the node of a step."""
    return node is not None and (node.get("phase") in _FULFILLED or is_carried_over(node))


def _pod_phase(step: Step) -> str:
    return str((step.pod.get("status") or {}).get("phase", ""))


def pod_state(step: Step, node: Mapping[str, Any] | None, *, pod_gone: bool, workflow_gone: bool) -> State:
    """The state of a step whose Pod was seen; without Pod and Workflow it never ends if it has not."""
    phase = _pod_phase(step)
    if phase == "Succeeded":
        return State.CACHED if _reused(step) else State.COMPLETE
    if phase == "Failed" and node is not None and node.get("phase") == "Succeeded":
        return State.COMPLETE  # for Argo the step's own container counts, not its sidecars
    closed = closing_node(node, pod_gone=pod_gone)
    if closed is not None:
        state = node_state(closed)
        # Argo's word on how it ended, but the Pod's on whether it ran.
        return State.COMPLETE if state is State.CACHED and phase == "Running" else state
    if phase == "Failed":
        return State.FAILED
    return State.CANCELED if pod_gone and workflow_gone else State.RUNNING


def _reused(step: Step) -> bool:
    """Whether memopod or Kubeflow's cache server gave this Pod the outputs of an earlier run."""
    return step.reused or step.labels.get(names.KFP_REUSED) == "true"


def node_state(node: Mapping[str, Any], *, ended: bool = False) -> State:
    """The state of a step as its node alone says it; `ended`: the Workflow is gone."""
    if is_carried_over(node):
        return State.CACHED
    if node.get("phase") == "Succeeded":
        # A Pod that ran was on a node; one that memopod finished, or Argo's memoization spared, was not.
        spared = (node.get("memoizationStatus") or {}).get("hit")
        ran = bool(node.get("hostNodeName")) or node.get("type") in _BY_THE_AGENT
        return State.COMPLETE if ran and not spared else State.CACHED
    if is_fulfilled(node):
        return State.CANCELED if _STOPPED.search(str(node.get("message") or "")) else State.FAILED
    return State.CANCELED if ended else State.RUNNING
