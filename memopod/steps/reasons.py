"""Why a step runs, or why it was reused: slugs for annotations, metrics and people, each with a sentence.

A slug is stable once released: dashboards and scripts match on it.
"""

from typing import Final

SENTENCES: Final[dict[str, str]] = {
    # Not a step that memopod looks at.
    "not-a-pod": "the request is not about the creation of a Pod",
    "pod-unreadable": "the Pod is of a shape that no API server sends",
    "not-opted-in": "the step does not carry an opt-in label",
    "namespace-exempt": "Pods of this namespace are never touched",
    "annotations-full": "the Pod's annotations leave no room for memopod's",
    "untrusted-creator": "the Pod was not created by a trusted workflow controller",
    "no-workflow": "the Pod is not owned by a Workflow",
    "no-node": "the Pod names no node of its Workflow",
    "no-template": "no container carries the step's template",
    "template-unreadable": "the step's template cannot be read",
    "kfp-v2": "Kubeflow Pipelines v2 has a cache of its own",
    "tfx": "TFX steps keep their own record of what ran",
    # A step that has no key, and so is never reused.
    "template-resource": "resource templates act on the cluster",
    "template-daemon": "daemon steps are used while they run",
    "template-memoized": "the template is memoized by Argo itself",
    "template-kind": "only container, script and containerSet templates can be reused",
    "volume": "the step mounts a volume whose content is not known",
    "output-key-names-run": "an output's key holds the run's name, so it differs in each run",
    "input-unknown": "the identity of an input artifact cannot be told",
    "configmap-unreadable": "a ConfigMap that the step uses cannot be read",
    # A step that has a key and is not held.
    "bypass": "the step asks to run",
    "no-controller": "no controller is alive to decide",
    "node-assigned": "the Pod is bound to a node already",
    "deadline-near": "the step's deadline leaves no time to decide",
    # A held step that runs.
    "miss": "no entry has this key",
    "stale": "the entry is older than the step or the cluster allows",
    "tag-stale": "the entry is older than is allowed where an image is named by a tag",
    "disabled": "the maximum staleness of the step or its namespace is zero, or cannot be read",
    "namespace-unreadable": "the annotations of the step's Namespace must not be read",
    "outputs-mismatch": "the entry's outputs are not those that the step declares",
    "outputs-gone": "an output of the entry is gone or has changed",
    "outputs-unchecked": "the object store could not be asked about the entry's outputs",
    "result-exists": "a WorkflowTaskResult of somebody else exists",
    "outputs-too-large": "the outputs do not fit into the annotation that Argo 3.5 and earlier read",
    "result-refused": "the API server refused the WorkflowTaskResult",
    "seal-invalid": "the Pod's seal is missing or not valid",
    "too-late": "the decision came too close to the time when the Pod must be released",
    "decision-timeout": "the decision took too long",
    "entries-unavailable": "the database of entries did not answer",
    "kubernetes-unavailable": "the API server did not answer a question that the decision needs",
    "internal-error": "memopod failed to decide; its log says how",
    "overdue": "nobody decided in time",
    "by-hand": "somebody released it with `memopod cache release`",
    "audit": "an entry could be reused, and the step runs to compare its outputs",
    # A step that waited for an identical one, and runs.
    "awaited-failed": "the identical step that it waited for failed",
    "awaited-gone": "the Pod of the identical step that it waited for is gone",
    "awaited-pending": "the identical step that it waited for did not start",
    "awaited-no-entry": "the identical step that it waited for succeeded, and made no entry",
    "waited-too-long": "it waited for an identical step as long as the cluster allows",
    "waiting-off": "steps do not wait for identical ones any more",
    # Reuse.
    "hit": "an identical step ran before, and its outputs are still there",
}
"""Slug -> what it means, as the end of a sentence."""

REFUSALS: Final = frozenset(
    # An entry has the step's key, and is not reused: what people get an Event for.
    {
        *("stale", "tag-stale", "outputs-mismatch", "outputs-gone", "outputs-unchecked"),
        *("outputs-too-large", "result-exists", "result-refused", "too-late"),
    }
)
