"""The seal: proof that a Pod's base key was computed at admission, in this namespace, for this Pod.

An HMAC (SHA-256) over namespace, Pod name, Workflow UID, base key and the time of sealing. It cannot
cover the Pod's UID, which does not exist yet at admission, so the time ties it to the Pod's creation.
"""

import hmac

from memopod.steps.argo import Run
from memopod.steps.framing import frame

TOLERANCE_SECONDS = 60
"""How far the seal's time may be from the Pod's creation: webhooks run just before it."""


def seal(secret: bytes, run: Run, key: str, at: int) -> str:
    """Seal a base key at the Unix time `at`: `<at>.<64 hexadecimal digits>`."""
    text = frame("memopod-seal-1", run.namespace, run.pod_name, run.workflow_uid, key, str(at))
    return f"{at}.{hmac.digest(secret, text, 'sha256').hex()}"


def is_sealed(secret: bytes, run: Run, key: str, value: str | None, created: float) -> bool:
    """Whether `value` seals `key` for this Pod, created at the Unix time `created`."""
    at, separator, _ = (value or "").partition(".")
    if not separator or not (at.isascii() and at.isdigit()) or len(at) > 12:
        return False
    if abs(int(at) - created) > TOLERANCE_SECONDS:
        return False
    return hmac.compare_digest(seal(secret, run, key, int(at)).encode(), str(value).encode())
