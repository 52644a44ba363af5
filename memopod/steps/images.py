"""What the images of a step say of themselves: a digest names a content, a tag a place."""

import re
from collections.abc import Mapping
from typing import Any

from memopod.steps.argo import Step
from memopod.steps.components import counted_containers
from memopod.steps.volumes import counted_volumes

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def is_pinned(reference: str) -> bool:
    """Whether an image reference names its content (`repository@sha256:...`), whatever tag is in it."""
    return _DIGEST.search(reference) is not None


def mutable_images(step: Step, ignored: frozenset[str] = frozenset()) -> list[str]:
    """Images of the step, run or mounted, that are named by a tag alone: it may point elsewhere tomorrow."""
    counted = counted_containers(step, ignored)
    references = [container.get("image") for container in counted]
    references += [_mounted(volume) for volume in counted_volumes(step.pod, counted)]
    return [str(reference) for reference in references if reference and not is_pinned(str(reference))]


def _mounted(volume: Mapping[str, Any]) -> Any:
    return (volume.get("image") or {}).get("reference")
