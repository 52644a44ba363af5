"""A step's Pod that is asked for and not made (`dryRun`), as the workflow controller would ask for it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from memopod.cli.install_found import FAILED, OK, SKIPPED, UNKNOWN, Check, failed_of
from memopod.kube import PODS, ApiError, Client, Forbidden
from memopod.steps import names

_UID = "00000000-0000-4000-8000-000000000000"
_NEEDED = (
    "kubernetes", "database address", "cache-server", "trusted creators", "leader", "webhook",
    "webhook certificate", "scheduling gates",
)  # fmt: skip
"""Checks without which a step is not held, whatever the webhook does."""
_TRIES = 3
"""Several API servers may be behind one address, and not all follow a change at once."""


def pod(place: str, *, gated: bool) -> dict[str, Any]:
    """A Pod with a gate of nobody's, or one of a step that opted in."""
    name = "memopod-install-check"
    template = {"name": "check", "container": {"image": "busybox", "command": ["true"]}}
    quiet = {
        "allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 1000,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    few = {"cpu": "10m", "memory": "16Mi"}
    body: dict[str, Any] = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": place},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": "busybox", "command": ["true"], "securityContext": quiet,
                "resources": {"requests": few, "limits": few},
                "env": [{"name": names.ENV_TEMPLATE, "value": json.dumps(template)}],
            }],
        },
    }  # fmt: skip
    if gated:
        body["spec"]["schedulingGates"] = [{"name": "memopod.io/check"}]
        return body
    body["metadata"] |= {
        "labels": {names.OPT_IN_LABEL: "true", names.ARGO_WORKFLOW: name},
        "annotations": {names.ARGO_NODE_ID: name},
        "ownerReferences": [
            {
                "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": name, "uid": _UID,
                "controller": True,
            }
        ],
    }  # fmt: skip
    return body


async def _asked(path: str | None, user: str, body: Mapping[str, Any]) -> dict[str, Any]:
    async with Client.from_kubeconfig(path, user_agent="memopod-install-check", impersonate=user) as client:
        return await client.create(PODS, body, namespace=body["metadata"]["namespace"], dry_run=True)


async def gates(path: str | None, user: str, place: str, checks: Sequence[Check]) -> Check:
    """Whether the API server keeps a Pod's scheduling gate."""
    if failed := failed_of(checks, "kubernetes"):
        return Check("scheduling gates", SKIPPED, f"see {failed}")
    try:
        answer = await _asked(path, user, pod(place, gated=True))
    except ApiError as error:
        return _not_asked("scheduling gates", user, place, error)
    if not answer["spec"].get("schedulingGates"):
        return Check(
            "scheduling gates", FAILED, "the API server drops them: PodSchedulingReadiness is off",
            "switch it on, or set MEMOPOD_CACHE_STRATEGY=placeholder",
        )  # fmt: skip
    return Check("scheduling gates", OK, "kept")


async def webhook_answers(path: str | None, user: str, place: str, checks: Sequence[Check]) -> Check:
    """Whether a step's Pod comes back held."""
    name = "webhook answers"
    if failed := failed_of(checks, *_NEEDED):
        return Check(name, SKIPPED, f"see {failed}")
    reason: str | None = None
    for _ in range(_TRIES):
        try:
            answer = await _asked(path, user, pod(place, gated=False))
        except ApiError as error:
            return _not_asked(name, user, place, error)
        annotations = answer["metadata"].get("annotations") or {}
        if names.HOLD_UNTIL in annotations:
            return Check(name, OK, f"a step in {place} would be held")
        reason = annotations.get(names.REASON)
        if reason:
            break
    if reason:
        return Check(
            name, FAILED, f"it answers, and a step would run: {reason}", "the cache server's log says more"
        )
    return Check(
        name, FAILED, "the API server does not reach it: steps run as written",
        "look at the endpoints of Service cache-server, at firewalls and network policies between the API "
        "server and port 8443, and at the API server's log",
    )  # fmt: skip


def _not_asked(name: str, user: str, place: str, error: ApiError) -> Check:
    if isinstance(error, Forbidden):
        return Check(name, UNKNOWN, f"asking for a Pod in {place} as {user} is not allowed: {error.reason}")
    return Check(name, UNKNOWN, f"asking for a Pod in {place} failed: {error.reason}")
