"""The rules of a real API server that a careless patch would break.

Only those that matter to a mutating webhook, to a controller that finishes or releases held Pods and
to whoever creates Pods; https://kubernetes.io/docs/reference/ has the rest.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from memopod.kube import LEASES, NAMESPACES, PODS, Resource
from memopod.sandbox.apiserver.statuses import Cause, invalid

Object = Mapping[str, Any]

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LONGEST_LABEL: Final = 63
_LONGEST_NAME: Final = 253
_ANNOTATIONS_BYTES: Final = 256 * 1024

_MUTABLE_SPEC: Final = (
    "schedulingGates",
    "tolerations",
    "activeDeadlineSeconds",
    "terminationGracePeriodSeconds",
    "nodeName",
)
"""Fields with a rule of their own; all others of a Pod's spec, but images, are fixed."""


def check_new(resource: Resource, item: Object) -> None:
    """Raises StatusError (422) for a new object that breaks a rule."""
    causes = list(_metadata(resource, item["metadata"]))
    if resource == PODS:
        causes += _pod(item["spec"])
    _refuse(resource, item, causes)


def check_update(resource: Resource, before: Object, after: Object) -> None:
    """Raises StatusError (422) for a change that breaks a rule."""
    causes = list(_metadata(resource, after["metadata"]))
    if resource == PODS:
        causes += _pod_change(before["spec"], after["spec"])
    elif resource == LEASES and not isinstance(after.get("spec"), Mapping):
        causes.append(Cause("spec", "FieldValueRequired", "Required value"))
    _refuse(resource, after, causes)


def check_status(resource: Resource, before: Object, after: Object) -> None:
    """Raises StatusError (422) for a change of a Pod's status that breaks a rule."""
    causes = list(_metadata(resource, after["metadata"]))
    policy = before.get("spec", {}).get("restartPolicy")
    if resource == PODS and policy != "Always":
        for field in ("initContainerStatuses", "containerStatuses"):
            causes += _still_terminated(field, policy, before["status"], after.get("status") or {})
    _refuse(resource, after, causes)


def _refuse(resource: Resource, item: Object, causes: list[Cause]) -> None:
    if causes:
        raise invalid(resource, item["metadata"].get("name") or "", causes)


def _metadata(resource: Resource, metadata: Object) -> Iterable[Cause]:
    name = metadata.get("name")
    longest, form = (_LONGEST_LABEL, _LABEL) if resource == NAMESPACES else (_LONGEST_NAME, _SUBDOMAIN)
    if not isinstance(name, str) or not name:
        yield Cause("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")
    elif len(name) > longest or not form.fullmatch(name):
        yield _wrong("metadata.name", f"must be lower case, of at most {longest} characters: {name!r}")
    for key, value in _strings("metadata.labels", metadata.get("labels")):
        yield from _key("metadata.labels", key)
        if not isinstance(value, str) or (value and not _is_label_value(value)):
            yield _wrong(
                "metadata.labels", f"value of {key!r} must be a label value of at most 63 characters"
            )
    size = 0
    for key, value in _strings("metadata.annotations", metadata.get("annotations")):
        yield from _key("metadata.annotations", key)
        if not isinstance(value, str):
            yield _wrong("metadata.annotations", f"value of {key!r} must be a string")
        size += len(key) + len(str(value).encode())
    if size > _ANNOTATIONS_BYTES:
        yield Cause(
            "metadata.annotations", "FieldValueTooLong", f"must have at most {_ANNOTATIONS_BYTES} bytes"
        )


def _strings(_field: str, value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def _key(field: str, key: str) -> Iterable[Cause]:
    prefix, slash, name = key.rpartition("/")
    fits = len(name) <= _LONGEST_LABEL and _QUALIFIED.fullmatch(name)
    if not fits or (slash and (len(prefix) > _LONGEST_NAME or not _SUBDOMAIN.fullmatch(prefix))):
        yield _wrong(field, f"{key!r} is not a qualified name")


def _is_label_value(value: str) -> bool:
    return len(value) <= _LONGEST_LABEL and bool(_QUALIFIED.fullmatch(value))


def _pod(spec: Object) -> Iterable[Cause]:
    if not spec.get("containers"):
        yield Cause("spec.containers", "FieldValueRequired", "Required value")
    names: set[str] = set()
    for field in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(field) or []):
            yield from _container(f"spec.{field}[{index}]", container, names)
    gates = spec.get("schedulingGates") or []
    yield from _gate_names(gates)
    if gates and spec.get("nodeName"):
        yield _not_allowed("spec.nodeName", "cannot be set until all schedulingGates have been cleared")


def _container(field: str, container: Object, names: set[str]) -> Iterable[Cause]:
    name = container.get("name") or ""
    if not _LABEL.fullmatch(name):
        yield _wrong(f"{field}.name", "must be a DNS label")
    elif name in names:
        yield Cause(f"{field}.name", "FieldValueDuplicate", f"Duplicate value: {name!r}")
    names.add(name)
    if not container.get("image"):
        yield Cause(f"{field}.image", "FieldValueRequired", "Required value")


def _gate_names(gates: Iterable[Object]) -> Iterable[Cause]:
    seen: set[str] = set()
    for index, gate in enumerate(gates):
        field = f"spec.schedulingGates[{index}]"
        name = str(gate.get("name") or "")
        yield from _key(f"{field}.name", name)
        if name in seen:
            yield Cause(field, "FieldValueDuplicate", f"Duplicate value: {name!r}")
        seen.add(name)


def _pod_change(before: Object, after: Object) -> Iterable[Cause]:
    old_gates = {gate["name"] for gate in before.get("schedulingGates") or []}
    new_gates = [gate.get("name") for gate in after.get("schedulingGates") or []]
    yield from _gate_names(after.get("schedulingGates") or [])
    if not old_gates.issuperset(new_gates):
        yield _not_allowed("spec.schedulingGates", "only deletion is allowed, but found new scheduling gate")
    if after.get("nodeName") != before.get("nodeName"):
        yield from _node_change(before, after)
    old_tolerations = before.get("tolerations") or []
    if (after.get("tolerations") or [])[: len(old_tolerations)] != old_tolerations:
        yield _not_allowed("spec.tolerations", "existing tolerations can not be changed, only added to")
    yield from _deadline_change(before.get("activeDeadlineSeconds"), after.get("activeDeadlineSeconds"))
    if _fixed(before) != _fixed(after):
        yield _not_allowed(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, "
            "`spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only "
            "additions to existing tolerations)",
        )


def _node_change(before: Object, after: Object) -> Iterable[Cause]:
    """The sandbox has no scheduler and no binding: the kubelet takes a Pod by writing its own name."""
    if before.get("nodeName"):
        yield _not_allowed("spec.nodeName", "a bound Pod stays on its node")
    elif after.get("schedulingGates"):
        yield _not_allowed("spec.nodeName", "cannot be set until all schedulingGates have been cleared")


def _deadline_change(before: int | None, after: int | None) -> Iterable[Cause]:
    field = "spec.activeDeadlineSeconds"
    if before is not None and (after is None or after > before):
        yield _wrong(field, "must be less than or equal to previous value")


def _fixed(spec: Object) -> dict[str, Any]:
    fixed = {key: value for key, value in spec.items() if key not in _MUTABLE_SPEC}
    for field in ("initContainers", "containers"):
        if field in fixed:
            fixed[field] = [{**container, "image": None} for container in fixed[field]]
    return fixed


def _still_terminated(field: str, policy: str | None, before: Object, after: Object) -> Iterable[Cause]:
    """A container that has ended cannot run again (unless its Pod restarts it)."""
    now = {entry.get("name"): entry.get("state") or {} for entry in after.get(field) or []}
    for index, entry in enumerate(before.get(field) or []):
        terminated = (entry.get("state") or {}).get("terminated")
        if not terminated or (policy == "OnFailure" and terminated.get("exitCode")):
            continue
        name = entry.get("name")
        if name in now and not now[name].get("terminated"):
            yield _not_allowed(
                f"status.{field}[{index}].state", "may not be transitioned to non-terminated state"
            )


def _wrong(field: str, message: str) -> Cause:
    return Cause(field, "FieldValueInvalid", f"Invalid value: {message}")


def _not_allowed(field: str, message: str) -> Cause:
    return Cause(field, "FieldValueForbidden", f"Forbidden: {message}")
