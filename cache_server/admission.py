"""What to do with a Pod at admission: a pure decision, and the JSON patch that carries it out.

A Pod is *held* when a controller can decide for it; it is only *marked* (key and seal, so that its
run can become an entry) when nobody could, or when it asks to run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cache_server.review import Metadata, PodText
from memopod.kube import set_metadata_ops
from memopod.steps import NotAStep, Step, names, read_step
from memopod.steps.argo import Decoder, Run
from memopod.steps.deadline import first_left, seconds_left
from memopod.steps.key import KeyRules, Unkeyable, base_digest, names_run
from memopod.steps.repeats import Repeats, Sight, Told
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
_OWNED_SET = frozenset(OWNED)
_GATE = {"op": "add", "path": "/spec/schedulingGates", "value": [{"name": names.GATE}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What admission needs to know of the cluster. `hold_seconds`: the longest hold."""

    secret: bytes
    trusted_creators: frozenset[str]
    hold_seconds: float
    rules: KeyRules = KeyRules()  # noqa: RUF009 (frozen)


class Verdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`held`, or why not: `reason` is a slug. `patch` is a JSON patch, empty to leave the Pod alone."""

    held: bool
    reason: str
    patch: list[dict[str, Any]] = []


def admit(
    pod: Mapping[str, Any],
    *,
    namespace: str,
    username: str,
    now: datetime,
    controller_alive: bool,
    policy: Policy,
    decode: Decoder = json.loads,
    saw: Callable[[Step], None] | None = None,
) -> Verdict:
    """Decide on one Pod that is about to be created by `username`.

    `saw` is called with a step that has a key.

    The API server may call again after another webhook changed the Pod: who is held then keeps its one
    gate, and who is not held any more loses it, since nobody would look for it.
    """
    verdict = _judge(
        pod, namespace=namespace, username=username, now=now,
        controller_alive=controller_alive, policy=policy, decode=decode, saw=saw,
    )  # fmt: skip
    if not verdict.held and _has_gate(pod):
        patch = verdict.patch + _ungate(pod, marked=bool(verdict.patch))
        return Verdict(held=False, reason=verdict.reason, patch=patch)
    return verdict


def _judge(
    pod: Mapping[str, Any], *, namespace: str, username: str, now: datetime, controller_alive: bool,
    policy: Policy, decode: Decoder, saw: Callable[[Step], None] | None,
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
    if saw is not None:
        saw(step)
    obstacle = _obstacle(
        step.annotations, assigned=bool(pod["spec"].get("nodeName")), left=seconds_left(step, now),
        controller_alive=controller_alive, policy=policy,
    )  # fmt: skip
    verdict = _marked(pod["metadata"], step, key, obstacle, now, policy)
    return Verdict(held=True, reason="held", patch=verdict.patch + _gate(pod)) if verdict.held else verdict


class Admission:
    """`admit` for Pods as JSON text, which does not read again what it has read before."""

    def __init__(self, policy: Policy, decode: Decoder = json.loads) -> None:
        self._policy = policy
        self._decode = decode
        self._repeats = Repeats(policy.rules)

    def admit(
        self, pod: PodText, *, namespace: str, username: str, now: datetime, controller_alive: bool
    ) -> Verdict:
        """As `admit` does. Raises ValueError for what is no Pod."""
        metadata, spec = pod.metadata, bytes(pod.spec)
        run = run_of(metadata, namespace)
        sight = run and self._repeats.look(spec, run.pod_name, run.workflow, metadata.annotations or {})
        if run and sight and sight.told and not names_run(sight.told.output_keys, run):
            return _repeated(
                metadata, run, sight, sight.told, namespace=namespace, username=username, now=now,
                controller_alive=controller_alive, policy=self._policy,
            )  # fmt: skip

        def saw(step: Step) -> None:
            if sight and not (step.pod["spec"].keys() & {"nodeName", "schedulingGates"}):
                self._repeats.learn(spec, sight, step)

        return admit(
            pod.decoded(), namespace=namespace, username=username, now=now, policy=self._policy,
            controller_alive=controller_alive, decode=self._decode, saw=saw,
        )  # fmt: skip


class _Run(msgspec.Struct, frozen=True, gc=False):
    """See `memopod.steps.argo.Run`."""

    namespace: str
    pod_name: str
    workflow: str
    workflow_uid: str


def run_of(metadata: Metadata, namespace: str) -> Run | None:
    """Whose run a Pod is of, if its metadata alone tell: its Workflow, and its node by the annotation."""
    if not (metadata.annotations or {}).get(names.ARGO_NODE_ID):
        return None
    for owner in metadata.ownerReferences or ():
        if owner.kind == "Workflow" and owner.apiVersion.startswith("argoproj.io/"):
            return _Run(metadata.namespace or namespace, metadata.name, owner.name, owner.uid)
    return None


def _repeated(
    metadata: Metadata, run: Run, sight: Sight, told: Told, *, namespace: str, username: str, now: datetime,
    controller_alive: bool, policy: Policy,
) -> Verdict:  # fmt: skip
    """What `_judge` says of a Pod whose spec was read before, and that no node and no gate was given to."""
    labels, annotations = metadata.labels or {}, metadata.annotations or {}
    refusal = _refusal(labels, annotations, namespace, username, policy, _no)
    if refusal is None and _too_long(annotations):
        refusal = "annotations-full"
    if refusal:
        return Verdict(held=False, reason=refusal)
    obstacle = _obstacle(
        annotations, assigned=False, left=first_left(told.waits, sight.deadlines(told), now),
        controller_alive=controller_alive, policy=policy,
    )  # fmt: skip
    given = {
        name: value for name in ("labels", "annotations") if (value := getattr(metadata, name)) is not None
    }
    if metadata.resourceVersion:
        given["resourceVersion"] = metadata.resourceVersion
    verdict = _marked(given, run, told.digest, obstacle, now, policy)
    return Verdict(held=True, reason="held", patch=[*verdict.patch, _GATE]) if verdict.held else verdict


def _marked(
    metadata: Mapping[str, Any], run: Run, key: str, obstacle: str | None, now: datetime, policy: Policy
) -> Verdict:
    """The verdict on a step that has a key; where the Pod is held, its gate is still to be added."""
    marks = {names.KEY: key, names.SEAL: seal(policy.secret, run, key, int(now.timestamp()))}
    if obstacle:
        marks |= {names.DECISION: names.RUN, names.REASON: obstacle}
        return Verdict(held=False, reason=obstacle, patch=_mark(metadata, names.RELEASED, marks))
    marks[names.HOLD_UNTIL] = to_text(now + timedelta(seconds=policy.hold_seconds))
    return Verdict(held=True, reason="held", patch=_mark(metadata, names.HELD, marks))


def not_ours(pod: Mapping[str, Any], namespace: str, username: str, policy: Policy) -> str | None:
    """Why the Pod is none that memopod looks at; None if it is one."""
    labels = pod["metadata"].get("labels") or {}
    annotations = pod["metadata"].get("annotations") or {}
    return _refusal(labels, annotations, namespace, username, policy, lambda: _runs_tfx(pod))


def _refusal(
    labels: Mapping[str, str], annotations: Mapping[str, str], namespace: str, username: str, policy: Policy,
    runs_tfx: Callable[[], bool],
) -> str | None:  # fmt: skip
    if namespace in _EXEMPT_NAMESPACES:
        return "namespace-exempt"
    if not opted_in(labels):
        return "not-opted-in"
    # As Kubeflow's cache server tells TFX steps: by SDK label, or by the command of the one `main`.
    if "tfx" in labels.get(names.KFP_SDK_TYPE, "") or runs_tfx():
        return "tfx"
    if annotations.get(names.KFP_V2_COMPONENT) == "true":
        return "kfp-v2"
    if username not in policy.trusted_creators:
        return "untrusted-creator"
    return None


def is_full(pod: Mapping[str, Any]) -> bool:
    """Whether our marks could make the API server refuse the Pod for the size of its annotations."""
    return _too_long(pod["metadata"].get("annotations") or {})


def _too_long(annotations: Mapping[str, str]) -> bool:
    # A character has four bytes at most: so they are hardly ever counted.
    most = sum(map(len, annotations)) + 4 * sum(len(str(v)) for v in annotations.values())
    if most <= _ANNOTATIONS_LIMIT:
        return False
    return sum(len(k) + len(str(v).encode()) for k, v in annotations.items()) > _ANNOTATIONS_LIMIT


def opted_in(labels: Mapping[str, str]) -> bool:
    """The label of memopod decides where it is present, Kubeflow's where it is not."""
    own = labels.get(names.OPT_IN_LABEL)
    return (labels.get(names.KFP_OPT_IN_LABEL) if own is None else own) == "true"


def _runs_tfx(pod: Mapping[str, Any]) -> bool:
    mains = [c for c in pod["spec"]["containers"] if c.get("name") == "main"]
    command = mains[0].get("command") if len(mains) == 1 else None
    return not pod["spec"]["containers"] or bool(command and str(command[-1]).endswith(_TFX_ENTRYPOINT))


def _no() -> bool:
    return False


def _obstacle(
    annotations: Mapping[str, str], *, assigned: bool, left: float | None, controller_alive: bool,
    policy: Policy,
) -> str | None:  # fmt: skip
    """Why a step that has a key must not be held; None if it may. `left`: seconds to its deadline."""
    if assigned:
        return "node-assigned"
    if annotations.get(names.BYPASS) == "true":
        return "bypass"
    if not controller_alive:
        return "no-controller"
    return "deadline-near" if left is not None and left < 2 * policy.hold_seconds else None


def _explain(pod: Mapping[str, Any], reason: str) -> list[dict[str, Any]]:
    """Say why the step will not be reused."""
    return mark(pod, None, {names.DECISION: names.RUN, names.REASON: reason})


def mark(pod: Mapping[str, Any], state: str | None, marks: Mapping[str, str]) -> list[dict[str, Any]]:
    """Set our label and annotations, and remove those that only pretend to be ours."""
    return _mark(pod["metadata"], state, marks)


def _mark(metadata: Mapping[str, Any], state: str | None, marks: Mapping[str, str]) -> list[dict[str, Any]]:
    none = _OWNED_SET.isdisjoint(metadata.get("annotations") or ())
    annotations = marks if none else {**dict.fromkeys(OWNED), **marks}
    return set_metadata_ops(metadata, labels={names.STEP_LABEL: state}, annotations=annotations)


def _has_gate(pod: Mapping[str, Any]) -> bool:
    return any(gate.get("name") == names.GATE for gate in pod["spec"].get("schedulingGates") or ())


def _gate(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add the gate, once: the API server may call a webhook again for the same Pod."""
    if not pod["spec"].get("schedulingGates"):
        return [_GATE]
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
