"""What to do with a Pod at admission: a pure decision, and the JSON patch that carries it out.

A Pod is *held* when a controller can decide for it; it is only *marked* (key and seal, so that its
run can become an entry) when nobody could, or when it asks to run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from memopod.kube import set_metadata_ops
from memopod.steps import NotAStep, Step, names, read_step
from memopod.steps.argo import Decoder
from memopod.steps.deadline import seconds_left
from memopod.steps.key import KeyRules, Unkeyable, base_digest
from memopod.steps.seal import seal
from memopod.steps.times import to_text

_EXEMPT_NAMESPACES = ("kube-system", "kube-public")
_TFX_ENTRYPOINT = "tfx/orchestration/kubeflow/container_entrypoint.py"
_ANNOTATIONS_LIMIT = 262_144 - 16_384
"""Bytes: what Kubernetes allows on one object, less room for our own."""
OWNED = (
    names.KEY, names.ENTRY_KEY, names.COMPONENTS, names.SEAL, names.HOLD_UNTIL, names.CLAIMED_BY,
    names.WAITS_FOR, names.INPUTS, names.DECISION, names.REASON, names.ENTRY, names.SOURCE_POD,
    names.SOURCE_EXECUTION, names.SOURCE_LOGS, names.AUDITS,
)  # fmt: skip
"""Annotations that only memopod may set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What admission needs to know of the cluster. `hold_seconds`: the longest hold."""

    secret: bytes
    trusted_creators: frozenset[str]
    hold_seconds: float
    rules: KeyRules = KeyRules()  # noqa: RUF009 (frozen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`held`, or why not: `reason` is a slug. `patch` is a JSON patch, empty to leave the Pod alone."""

    held: bool
    reason: str
    patch: list[dict[str, Any]] = field(default_factory=list)


def admit(
    pod: Mapping[str, Any],
    *,
    namespace: str,
    username: str,
    now: datetime,
    controller_alive: bool,
    policy: Policy,
    decode: Decoder = json.loads,
) -> Verdict:
    """Decide on one Pod that is about to be created by `username`.

    The API server may call again after another webhook changed the Pod: who is held then keeps its one
    gate, and who is not held any more loses it, since nobody would look for it.
    """
    verdict = _judge(
        pod, namespace=namespace, username=username, now=now,
        controller_alive=controller_alive, policy=policy, decode=decode,
    )  # fmt: skip
    if not verdict.held and _has_gate(pod):
        return replace(verdict, patch=verdict.patch + _ungate(pod, marked=bool(verdict.patch)))
    return verdict


def _judge(
    pod: Mapping[str, Any], *, namespace: str, username: str, now: datetime, controller_alive: bool,
    policy: Policy, decode: Decoder,
) -> Verdict:  # fmt: skip
    refusal = not_ours(pod, namespace, username, policy)
    if refusal is None and is_full(pod):
        refusal = "annotations-full"
    if refusal:
        return Verdict(held=False, reason=refusal)
    try:
        step = read_step(pod, namespace=namespace, decode=decode)
        key = base_digest(step, policy.rules)
    except (NotAStep, Unkeyable) as error:
        return Verdict(held=False, reason=error.reason, patch=_explain(pod, error.reason))
    obstacle = _obstacle(step, now, controller_alive=controller_alive, hold=policy.hold_seconds)
    marks = {
        names.KEY: key,
        names.SEAL: seal(policy.secret, step, key, int(now.timestamp())),
    }
    if obstacle:
        marks |= {names.DECISION: names.RUN, names.REASON: obstacle}
        return Verdict(held=False, reason=obstacle, patch=mark(pod, names.RELEASED, marks))
    marks[names.HOLD_UNTIL] = to_text(now + timedelta(seconds=policy.hold_seconds))
    return Verdict(held=True, reason="held", patch=mark(pod, names.HELD, marks) + _gate(pod))


def not_ours(pod: Mapping[str, Any], namespace: str, username: str, policy: Policy) -> str | None:
    """Why the Pod is none that memopod looks at; None if it is one."""
    labels = pod["metadata"].get("labels") or {}
    annotations = pod["metadata"].get("annotations") or {}
    if namespace in _EXEMPT_NAMESPACES:
        return "namespace-exempt"
    if not opted_in(labels):
        return "not-opted-in"
    if _is_tfx(pod, labels):
        return "tfx"
    if annotations.get(names.KFP_V2_COMPONENT) == "true":
        return "kfp-v2"
    if username not in policy.trusted_creators:
        return "untrusted-creator"
    return None


def is_full(pod: Mapping[str, Any]) -> bool:
    """Whether our marks could make the API server refuse the Pod for the size of its annotations."""
    annotations = pod["metadata"].get("annotations") or {}
    return sum(len(k) + len(str(v).encode()) for k, v in annotations.items()) > _ANNOTATIONS_LIMIT


def opted_in(labels: Mapping[str, str]) -> bool:
    """The label of memopod decides where it is present, Kubeflow's where it is not."""
    own = labels.get(names.OPT_IN_LABEL)
    return (labels.get(names.KFP_OPT_IN_LABEL) if own is None else own) == "true"


def _is_tfx(pod: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As Kubeflow's cache server tells TFX steps: by SDK label, or by the command of the one `main`."""
    if "tfx" in labels.get(names.KFP_SDK_TYPE, ""):
        return True
    mains = [c for c in pod["spec"]["containers"] if c.get("name") == "main"]
    command = mains[0].get("command") if len(mains) == 1 else None
    return not pod["spec"]["containers"] or bool(command and str(command[-1]).endswith(_TFX_ENTRYPOINT))


def _obstacle(step: Step, now: datetime, *, controller_alive: bool, hold: float) -> str | None:
    """Why a step that has a key must not be held; None if it may."""
    if step.pod["spec"].get("nodeName"):
        return "node-assigned"
    if step.annotations.get(names.BYPASS) == "true":
        return "bypass"
    if not controller_alive:
        return "no-controller"
    left = seconds_left(step, now)
    return "deadline-near" if left is not None and left < 2 * hold else None


def _explain(pod: Mapping[str, Any], reason: str) -> list[dict[str, Any]]:
    """Say why the step will not be reused."""
    return mark(pod, None, {names.DECISION: names.RUN, names.REASON: reason})


def mark(pod: Mapping[str, Any], state: str | None, marks: Mapping[str, str]) -> list[dict[str, Any]]:
    """Set our label and annotations, and remove those that only pretend to be ours."""
    return set_metadata_ops(
        pod["metadata"],
        labels={names.STEP_LABEL: state},
        annotations={**dict.fromkeys(OWNED), **marks},
    )


def _has_gate(pod: Mapping[str, Any]) -> bool:
    return any(gate.get("name") == names.GATE for gate in pod["spec"].get("schedulingGates") or ())


def _gate(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add the gate, once: the API server may call a webhook again for the same Pod."""
    if not pod["spec"].get("schedulingGates"):
        return [{"op": "add", "path": "/spec/schedulingGates", "value": [{"name": names.GATE}]}]
    if _has_gate(pod):
        return []
    return [{"op": "add", "path": "/spec/schedulingGates/-", "value": {"name": names.GATE}}]


def _ungate(pod: Mapping[str, Any], *, marked: bool) -> list[dict[str, Any]]:
    """Remove the gate that an earlier call added, and its label unless that was set anew (`marked`)."""
    position = next(
        i for i, gate in enumerate(pod["spec"]["schedulingGates"]) if gate.get("name") == names.GATE
    )
    label = {} if marked else {names.STEP_LABEL: None}
    return [
        {"op": "remove", "path": f"/spec/schedulingGates/{position}"},
        *set_metadata_ops(pod["metadata"], labels=label, annotations={}),
    ]
