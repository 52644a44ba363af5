"""Audits: a share of the hits runs all the same, and what it puts out is compared with the entry.

A step that is not a function of what its key holds (a clock, a random number, a service that it asks) cannot
be told by its Pod. An audit finds it, after the fact. Pure rules; the recorder acts on them.
"""

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass

from memopod.steps.framing import frame
from memopod.steps.outputs import OutputArtifact, Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Names of outputs: `differing` says how each of them differs, by digests that tell nobody else a value.

    `incomparable`: artifacts whose content nobody can tell, or that Argo packed with the time inside.
    """

    differing: tuple[str, ...]
    incomparable: tuple[str, ...]

    @property
    def result(self) -> str:
        """`different`, `unknown` if nothing differs but not all could be compared, or `same`."""
        if self.differing:
            return "different"
        return "unknown" if self.incomparable else "same"


def is_audited(pod_uid: str, rate: float) -> bool:
    """Whether a hit of this Pod is one of the share `rate` (0 to 1) that runs; the same for everybody."""
    drawn = int.from_bytes(hashlib.sha256(f"memopod-audit-1:{pod_uid}".encode()).digest()[:8])
    return drawn < rate * 2**64


def audit_key(secret: bytes, namespace: str) -> bytes:
    """The key of a namespace's digests: in another one, nobody can make or recognise them."""
    return hmac.digest(secret, frame("memopod-audit-key-2", namespace), "sha256")


def compare(before: Outputs, after: Outputs, *, unpacked: Collection[str], key: bytes) -> Comparison:
    """Compare two runs' outputs of the same declarations.

    `unpacked` names the artifacts that Argo stored as they are (`archive: none`); of any other, equal
    content can be different bytes. What differs is told by an HMAC under `key`: the digest of a short value
    could be guessed. Told again, the same value of the same output is the same digest.
    """

    def told(output: str, value: str | None) -> str:
        if value is None:
            return "none"
        return "hmac:" + hmac.digest(key, frame("memopod-audit-2", output, value), "sha256").hex()[:16]

    def differs(output: str, was: str | None, now: str | None) -> str:
        return f"{output}: {told(output, now)}, was {told(output, was)}"

    differing, incomparable = [], []
    for name in sorted(before.parameters.keys() | after.parameters.keys()):
        was, now = before.parameters.get(name), after.parameters.get(name)
        if was != now:
            differing.append(differs(f"parameter {name}", was, now))
    if before.result != after.result:
        differing.append(differs("result", before.result, after.result))
    for artifact in before.artifacts:
        again = after.artifact(artifact.name)
        if again is None or _content(artifact) is None or _content(again) is None:
            incomparable.append(artifact.name)
        elif _content(artifact) != _content(again):
            if artifact.name in unpacked:
                differing.append(differs(f"artifact {artifact.name}", _content(artifact), _content(again)))
            else:
                incomparable.append(artifact.name)
    return Comparison(differing=tuple(differing), incomparable=tuple(incomparable))


def _content(artifact: OutputArtifact) -> str | None:
    return None if artifact.digest is None else f"{artifact.digest} {artifact.size}"
