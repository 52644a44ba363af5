"""What a real API server adds to an object that was sent to it.

For Pods: the defaults of the core/v1 types, and what its admission plugins ServiceAccount,
DefaultTolerationSeconds and Priority write before any webhook is called. Limited to what the
recordings of Argo's Pods show.
"""

import base64
import random
from typing import Any, Final

from memopod.kube import MUTATING_WEBHOOKS, NAMESPACES, PODS, SECRETS, Resource

Object = dict[str, Any]

_TOKEN_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a folder
_TOKEN_SECONDS: Final = 3607
_READABLE: Final = 420
"""0644: the mode of files from volumes."""
_NAME_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"
_CONTAINERS: Final = ("initContainers", "containers")


def random_suffix() -> str:
    """Five characters as `generateName` appends them; not a secret."""
    return "".join(random.choices(_NAME_ALPHABET, k=5))  # noqa: S311


def admit(resource: Resource, item: Object) -> None:
    """Change a new object as the built-in admission plugins do, before webhooks see it."""
    if resource == PODS:
        _mount_service_account(item["spec"])
        _tolerate(item["spec"])
        item["spec"].setdefault("priority", 0)
        item["spec"].setdefault("preemptionPolicy", "PreemptLowerPriority")


def fill_in(resource: Resource, item: Object) -> None:
    """Write the defaults of absent fields; done again after each change, it changes nothing more."""
    if resource == PODS:
        _fill_in_pod(item["spec"])
    elif resource == SECRETS:
        item.setdefault("type", "Opaque")
        encoded = {
            key: base64.b64encode(str(value).encode()).decode()
            for key, value in item.pop("stringData", {}).items()
        }
        if encoded:
            item["data"] = {**(item.get("data") or {}), **encoded}
    elif resource == NAMESPACES:
        labels = item["metadata"].setdefault("labels", {})
        labels["kubernetes.io/metadata.name"] = item["metadata"]["name"]
    elif resource == MUTATING_WEBHOOKS:
        for webhook in item.get("webhooks") or []:
            _fill_in_webhook(webhook)


def first_status(resource: Resource, item: Object, now: str) -> Object | None:
    """The status of a new object whose kind has a status of its own."""
    if resource == NAMESPACES:
        return {"phase": "Active"}
    if resource != PODS:
        return None
    status: Object = {"phase": "Pending", "qosClass": _qos_class(item["spec"])}
    if item["spec"].get("schedulingGates"):
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "lastProbeTime": None,
            "lastTransitionTime": now,
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }
        status["conditions"] = [condition]
    return status


def _mount_service_account(spec: Object) -> None:
    account = spec.setdefault("serviceAccountName", spec.get("serviceAccount") or "default")
    spec["serviceAccount"] = account
    if spec.get("automountServiceAccountToken") is False:
        return
    name = f"kube-api-access-{random_suffix()}"
    needed = False
    for container in _containers(spec):
        mounts = container.setdefault("volumeMounts", [])
        if not any(mount.get("mountPath") == _TOKEN_PATH for mount in mounts):
            mounts.append({"name": name, "readOnly": True, "mountPath": _TOKEN_PATH})
            needed = True
    if needed:
        spec.setdefault("volumes", []).append(_token_volume(name))


def _token_volume(name: str) -> Object:
    token = {"serviceAccountToken": {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}}
    ca = {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}
    namespace = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    field = {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": namespace}]}}
    return {"name": name, "projected": {"sources": [token, ca, field], "defaultMode": _READABLE}}


def _tolerate(spec: Object) -> None:
    tolerations = spec.setdefault("tolerations", [])
    for condition in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{condition}"
        if not any(toleration.get("key") in (key, None) for toleration in tolerations):
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            )


def _fill_in_pod(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("enableServiceLinks", True)
    for container in _containers(spec):
        _fill_in_container(container)
    for volume in spec.get("volumes") or []:
        for kind in ("secret", "configMap", "projected", "downwardAPI"):
            if isinstance(volume.get(kind), dict):
                volume[kind].setdefault("defaultMode", _READABLE)


def _fill_in_container(container: Object) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("imagePullPolicy", _pull_policy(container.get("image") or ""))
    for port in container.get("ports") or []:
        port.setdefault("protocol", "TCP")
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if isinstance(reference, dict):
            reference.setdefault("apiVersion", "v1")


def _pull_policy(image: str) -> str:
    last = image.rsplit("/", 1)[-1]
    untagged = ":" not in last and "@" not in last
    return "Always" if untagged or last.endswith(":latest") else "IfNotPresent"


def _fill_in_webhook(webhook: Object) -> None:
    webhook.setdefault("failurePolicy", "Fail")
    webhook.setdefault("matchPolicy", "Equivalent")
    webhook.setdefault("timeoutSeconds", 10)
    webhook.setdefault("reinvocationPolicy", "Never")
    webhook.setdefault("namespaceSelector", {})
    webhook.setdefault("objectSelector", {})
    for rule in webhook.get("rules") or []:
        rule.setdefault("scope", "*")


def _qos_class(spec: Object) -> str:
    """The Pod's class by https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/ rules."""
    resources = [container.get("resources") or {} for container in _containers(spec)]
    limits = [entry.get("limits") or {} for entry in resources]
    if not any(limits) and not any(entry.get("requests") for entry in resources):
        return "BestEffort"
    guaranteed = all(
        {"cpu", "memory"} <= limit.keys() and (entry.get("requests") or limit) == limit
        for entry, limit in zip(resources, limits, strict=True)
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _containers(spec: Object) -> list[Object]:
    return [container for field in _CONTAINERS for container in spec.get(field) or []]
