"""The seal: proof that a Pod's base key was computed at admission, in this namespace, for this Pod.

An HMAC (SHA-256) over namespace, Pod name, Workflow UID, base key and the time of sealing. It cannot
cover the Pod's UID, which does not exist yet at admission, so the time ties it to the Pod's creation.
"""

import hashlib
import hmac

from memopod.steps.argo import Step
from memopod.steps.framing import frame

TOLERANCE_SECONDS = 60
"""How far the seal's time may be from the Pod's creation: webhooks run just before it."""


def seal(secret: bytes, step: Step, key: str, at: int) -> str:
    """Seal a base key at the Unix time `at`: `<at>.<64 hexadecimal digits>`."""
    text = frame("memopod-seal-1", step.namespace, step.pod_name, step.workflow_uid, key, str(at))
    return f"{at}.{hmac.new(secret, text, hashlib.sha256).hexdigest()}"


def is_sealed(secret: bytes, step: Step, key: str, value: str | None, created: float) -> bool:
    """Whether `value` seals `key` for this Pod, created at the Unix time `created`."""
    at, separator, _ = (value or "").partition(".")
    if not separator or not (at.isascii() and at.isdigit()) or len(at) > 12:
        return False
    if abs(int(at) - created) > TOLERANCE_SECONDS:
        return False
    return hmac.compare_digest(seal(secret, step, key, int(at)).encode(), str(value).encode())
