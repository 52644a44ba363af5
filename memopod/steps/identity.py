"""Who a step is, once all that decides its result has been read."""

from dataclasses import dataclass

from memopod.steps.argo import Step
from memopod.steps.key import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A step with its whole template, its entry key, and the evidence of what it could read.

    `fixed`: nothing that the step reads from outside its Pod can change, so no evidence is needed.
    """

    step: Step
    key: Key
    evidence: str
    fixed: bool
