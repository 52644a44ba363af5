"""What a Pod says of the decision for it, and the outputs of the step that most tests run."""

from memopod.steps import names

OUTPUTS = {"parameters": [{"name": "Output", "value": "hello", "valueFrom": {"path": "/tmp/o"}}]}


def marks(pod):
    annotations = pod["metadata"]["annotations"]
    return annotations.get(names.DECISION), annotations.get(names.REASON)


def state(pod):
    return pod["metadata"]["labels"][names.STEP_LABEL]
