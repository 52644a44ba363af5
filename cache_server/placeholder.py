"""Placeholder mode, the Kubeflow way: the step is looked up at admission, and on a hit its containers are
swapped for one that says so and ends.

For clusters without scheduling gates, and for those who replace Kubeflow's cache server: the patches are
that server's, in its order and with its values (backend/src/cache/server/mutation.go). Entries, keys and
rules are those of gate mode. What differs from Kubeflow on purpose: the placeholder satisfies the
restricted Pod security profile and the limits of a quota, nothing of the Pod that would make the API
server refuse it stays behind, and no doubt or failure ever refuses a Pod: the step runs.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cache_server.admission import OWNED, Policy, Verdict, is_full, not_ours
from cache_server.decision import Decider, Reuse, Run
from cache_server.review import AdmissionRequest
from cache_server.webhook import Judge, decode_template
from memopod.steps import NotAStep, Step, names, read_step
from memopod.steps.argo import containers, environment, main_container, template_text
from memopod.steps.finish import needs_result, outputs_text
from memopod.steps.framing import frame
from memopod.steps.key import Key, Unkeyable, base_key, names_run, remembered_key
from memopod.steps.kubeflow import FingerprintError, fingerprint
from memopod.steps.repeats import Repeats
from memopod.steps.seal import is_sealed, seal

_KEPT_ENVIRONMENT = (names.ENV_TEMPLATE, "ARGO_NODE_ID", names.ENV_INCLUDE_RESULT)
"""What tells everybody later which step a placeholder stands for."""
_CONTAINER_ANNOTATIONS = (
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
)
"""Annotations that name a container: for one that is not there the API server refuses the Pod."""
_OWNED_LABELS = (
    names.STEP_LABEL, names.KFP_CACHE_ID, names.KFP_REUSED, names.KFP_EXECUTION_ID, names.KFP_WRITTEN,
)  # fmt: skip
_NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceholderRules:
    """`image` of the placeholder; `keeps_node_restrictions`: affinity and node selector stay.

    `timeout` (seconds) is what looking an entry up may take; after that the step runs.
    """

    image: str
    keeps_node_restrictions: bool
    timeout: float


def placeholders(
    policy: Policy, decider: Decider, can_complete: Callable[[], bool], rules: PlaceholderRules,
    *, count: Callable[..., None] | None = None,
) -> Judge:  # fmt: skip
    """The judge of placeholder mode. `can_complete()`: somebody is there to write WorkflowTaskResults.

    `count(namespace, template, reason, entry_id)` is called for each step that runs after a look-up; a
    reuse is counted when it is completed.
    """
    repeats = Repeats(policy.rules)

    async def judge(request: AdmissionRequest) -> Verdict:
        text = request.pod()
        pod = text.decoded()
        refusal = not_ours(pod, request.namespace, request.username, policy)
        if refusal is None and is_full(pod):
            refusal = "annotations-full"
        if refusal:
            return Verdict(held=False, reason=refusal)
        try:
            step = read_step(pod, namespace=request.namespace, decode=decode_template)
        except NotAStep as error:
            return Verdict(held=False, reason=error.reason)
        now = datetime.now(UTC).timestamp()
        if is_swapped(step, policy.secret, now):
            # The API server calls again after another webhook changed the Pod.
            return Verdict(held=False, reason="hit")
        spec = bytes(text.spec)
        sight = repeats.look(spec, step.pod_name, step.workflow, step.annotations)
        told = sight.told
        known = _fingerprint(pod) if told is None or told.fingerprint is None else told.fingerprint
        try:
            if told is not None and not names_run(told.output_keys, step):
                base = remembered_key(told.digest, step, policy.rules)
            else:
                base = base_key(step, policy.rules)
                repeats.learn(spec, sight, step)
        except Unkeyable as error:
            return _runs(step, known, Run(reason=error.reason), {})
        key = base.digest
        decision = await decide(step, known, base, dry_run=bool(request.dryRun))
        if isinstance(decision, Reuse):
            return _reused(
                decision, known, key, seal(policy.secret, step, _what(key, decision), int(now)), rules
            )
        if count is not None and not request.dryRun:
            count(
                namespace=request.namespace, template=step.template_name, reason=decision.reason, entry_id=""
            )
        marks = {names.KEY: key, names.SEAL: seal(policy.secret, step, key, int(now))}
        return _runs(step, known, decision, marks)

    async def decide(step: Step, known: str | None, base: Key, *, dry_run: bool) -> Reuse | Run:
        if step.annotations.get(names.BYPASS) == "true":
            return Run(reason="bypass")
        decision = await decider.look_up(
            step, timeout=rules.timeout, fingerprint=known, base=base, dry_run=dry_run
        )
        obstacle = _obstacle(decision, can_complete) if isinstance(decision, Reuse) else None
        return Run(reason=obstacle) if obstacle else decision

    return judge


def _sealed_text(key: str, entry: str, outputs: str) -> str:
    """What the seal of a placeholder covers: key, entry and outputs, so that none can be exchanged."""
    return hashlib.sha256(frame("memopod-placeholder-1", key, entry, outputs)).hexdigest()


def is_swapped(step: Step, secret: bytes, created: float) -> bool:
    """Whether our webhook made this Pod, created at the Unix time `created`, a placeholder."""
    marks = [step.annotations.get(name) for name in (names.KEY, names.ENTRY, names.ARGO_OUTPUTS)]
    if step.labels.get(names.STEP_LABEL) != names.PLACEHOLDER or None in marks:
        return False
    text = _sealed_text(*map(str, marks))
    return is_sealed(secret, step, text, step.annotations.get(names.SEAL), created)


def _what(key: str, decision: Reuse) -> str:
    return _sealed_text(key, decision.entry.id, outputs_text(decision.outputs))


def _fingerprint(pod: Mapping[str, Any]) -> str | None:
    try:
        return fingerprint(template_text(pod) or "")
    except FingerprintError:
        return None


def _obstacle(decision: Reuse, can_complete: Callable[[], bool]) -> str | None:
    """Why an entry that fits must not be reused in this mode; None if it may."""
    if needs_result(decision.step) and not can_complete():
        # Argo 3.6 and later would wait for its WorkflowTaskResult for ever.
        return "no-controller"
    annotations = {**decision.step.annotations, names.ARGO_OUTPUTS: outputs_text(decision.outputs)}
    return "outputs-too-large" if is_full({"metadata": {"annotations": annotations}}) else None


def _runs(step: Step, known: str | None, decision: Run, seal_marks: Mapping[str, str]) -> Verdict:
    """Mark a step that runs: as Kubeflow does, and for the recorder where it has a key."""
    marks = {**seal_marks, names.DECISION: names.RUN, names.REASON: decision.reason}
    if known is not None:
        marks[names.KFP_CACHE_KEY] = known
    if decision.evidence is not None and seal_marks:
        marks[names.INPUTS] = decision.evidence
    if decision.audits is not None:
        marks[names.AUDITS] = decision.audits
    labels = {names.KFP_CACHE_ID: "", **({names.STEP_LABEL: names.RELEASED} if seal_marks else {})}
    return Verdict(held=False, reason=decision.reason, patch=_set_maps(step.pod, marks, labels))


def _reused(decision: Reuse, known: str | None, key: str, sealed: str, rules: PlaceholderRules) -> Verdict:
    entry, pod = decision.entry, decision.step.pod
    marks = {
        **({} if known is None else {names.KFP_CACHE_KEY: known}),
        names.ARGO_OUTPUTS: outputs_text(decision.outputs),
        names.KEY: key,
        names.SEAL: sealed,
        names.DECISION: names.REUSE,
        names.REASON: "hit",
        names.ENTRY: entry.id,
        **({names.SOURCE_POD: entry.pod_name} if entry.pod_name else {}),
        **({names.SOURCE_LOGS: entry.outputs.logs} if entry.outputs.logs else {}),
        **({names.SOURCE_EXECUTION: f"{entry.workflow_uid}/{entry.node_id}"} if entry.node_id else {}),
    }
    labels = {
        names.KFP_CACHE_ID: str(cache_id(entry.id)),
        names.KFP_REUSED: "true",
        names.KFP_EXECUTION_ID: "" if entry.execution_id is None else str(entry.execution_id),
        names.KFP_WRITTEN: "true",
        names.STEP_LABEL: names.PLACEHOLDER,
    }
    swap: list[dict[str, Any]] = [
        {"op": "replace", "path": "/spec/containers", "value": [_placeholder(pod, rules.image)]}
    ]
    removed = () if rules.keeps_node_restrictions else ("affinity", "nodeSelector")
    swap += [
        {"op": "remove", "path": f"/spec/{field}"}
        for field in (*removed, "initContainers")
        if pod["spec"].get(field) is not None
    ]
    return Verdict(held=False, reason="hit", patch=swap + _set_maps(pod, marks, labels))


def cache_id(entry: str) -> int:
    """The number that stands for an entry where Kubeflow has its row's id: the same for each reuse."""
    return int(entry[:15], 16)


def _placeholder(pod: Mapping[str, Any], image: str) -> dict[str, Any]:
    main = main_container(pod) or {}
    security: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if not (pod["spec"].get("securityContext") or {}).get("runAsUser"):
        # The image's own user may be root. A user that the platform chose for the step stays.
        security["runAsUser"] = (main.get("securityContext") or {}).get("runAsUser") or _NOBODY
    limits = (main.get("resources") or {}).get("limits") or {}
    kept = {name: limits[name] for name in ("cpu", "memory") if name in limits}
    environment_kept = [
        {"name": name, "value": value}
        for name in _KEPT_ENVIRONMENT
        if (value := next((v for c in containers(pod) if (v := environment(c, name)) is not None), None))
    ]
    return {
        "name": "main",
        "image": image,
        "command": ["echo", '"This step output is taken from cache."'],
        # A quota may ask for limits; those of the step have passed it.
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, **({"limits": kept} if kept else {})},
        "securityContext": security,
        **({"env": environment_kept} if environment_kept else {}),
    }


def _set_maps(
    pod: Mapping[str, Any], annotations: Mapping[str, str], labels: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Both maps as a whole, as Kubeflow writes them, without what only pretends to be memopod's."""
    swapped = names.ENTRY in annotations
    kept = {
        name: value
        for name, value in (pod["metadata"].get("annotations") or {}).items()
        if name not in OWNED and not (swapped and _names_lost_container(name))
    }
    others = {
        name: value
        for name, value in (pod["metadata"].get("labels") or {}).items()
        if name not in _OWNED_LABELS
    }
    return [
        {"op": "add", "path": "/metadata/annotations", "value": {**kept, **annotations}},
        {"op": "add", "path": "/metadata/labels", "value": {**others, **labels}},
    ]


def _names_lost_container(annotation: str) -> bool:
    return any(
        annotation.startswith(prefix) and annotation != f"{prefix}main" for prefix in _CONTAINER_ANNOTATIONS
    )
