"""What one pipeline step *is*: read from a Pod, its template and what Argo's executor reported.

Pure functions and frozen dataclasses; JSON decoders are passed in. `Step` and `read_step` (argo)
are where everything begins; `base_key` and `entry_key` (key) decide which steps are the same;
`Outputs` (outputs) is what one leaves behind.
"""

from memopod.steps.argo import NotAStep, Step, read_step
from memopod.steps.locations import Location
from memopod.steps.outputs import OutputArtifact, Outputs, OutputsMismatch

__all__ = ["Location", "NotAStep", "OutputArtifact", "Outputs", "OutputsMismatch", "Step", "read_step"]
