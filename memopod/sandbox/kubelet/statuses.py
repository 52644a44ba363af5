"""What a kubelet reports about a Pod: phase, conditions and a status for each container."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

NODE = "sandbox"


def moment() -> str:
    """Now, as Kubernetes writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a container ended."""

    exit_code: int
    finished_at: str
    reason: str = ""
    message: str = ""


def starting(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Bound to the node, no container started yet."""
    now = moment()
    waiting = {"waiting": {"reason": "PodInitializing"}}
    return {
        "phase": "Pending",
        "startTime": now,
        "conditions": _conditions(now, initialized=False, ready=False),
        "initContainerStatuses": [_container(pod, c, waiting) for c in _init(pod)],
        "containerStatuses": [_container(pod, c, waiting) for c in _containers(pod)],
        "qosClass": "BestEffort",
    }


def running(pod: Mapping[str, Any], started_at: str) -> dict[str, Any]:
    """The init containers are done, the others run."""
    state = {"running": {"startedAt": started_at}}
    return {
        "phase": "Running",
        "startTime": _start_time(pod, started_at),
        "conditions": _conditions(started_at, initialized=True, ready=True),
        "hostIP": "127.0.0.1",
        "podIP": "127.0.0.1",
        "initContainerStatuses": _init_done(pod, started_at),
        "containerStatuses": [_container(pod, c, state) for c in _containers(pod)],
        "qosClass": "BestEffort",
    }


def finished(
    pod: Mapping[str, Any],
    started_at: str,
    ended: Mapping[str, Ended],
    *,
    reason: str = "",
    message: str = "",
) -> dict[str, Any]:
    """All containers ended; the Pod succeeded if every one of them exited with 0."""
    succeeded = not reason and all(end.exit_code == 0 for end in ended.values())
    now = moment()
    containers = []
    for container in _containers(pod):
        end = ended[container["name"]]
        terminated = {
            "exitCode": end.exit_code,
            "reason": end.reason or ("Completed" if end.exit_code == 0 else "Error"),
            "startedAt": started_at,
            "finishedAt": end.finished_at,
            "containerID": container_id(pod, container["name"]),
        }
        if end.message:
            terminated["message"] = end.message
        containers.append(_container(pod, container, {"terminated": terminated}))
    status: dict[str, Any] = {
        "phase": "Succeeded" if succeeded else "Failed",
        "startTime": _start_time(pod, started_at),
        "conditions": _conditions(now, initialized=True, ready=False, completed=succeeded),
        "hostIP": "127.0.0.1",
        "podIP": "127.0.0.1",
        "initContainerStatuses": _init_done(pod, started_at),
        "containerStatuses": containers,
        "qosClass": "BestEffort",
    }
    if reason:
        status["reason"] = reason
    if message:
        status["message"] = message
    return status


def container_id(pod: Mapping[str, Any], name: str) -> str:
    """The id of a container: invented, but the same for the same container of the same Pod."""
    return "sandbox://" + hashlib.sha256(f"{pod['metadata']['uid']}/{name}".encode()).hexdigest()


def _container(
    pod: Mapping[str, Any], container: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    begun = "waiting" not in state
    done = "terminated" in state
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        # Says what it is: no image was pulled, so there is no digest to give.
        "imageID": f"sandbox://{container.get('image', '')}" if begun else "",
        "containerID": container_id(pod, container["name"]) if begun else "",
        "state": dict(state),
        "lastState": {},
        "ready": begun and not done,
        "started": begun and not done,
        "restartCount": 0,
    }


def _init_done(pod: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    statuses = []
    for container in _init(pod):
        terminated = {
            "exitCode": 0,
            "reason": "Completed",
            "startedAt": at,
            "finishedAt": at,
            "containerID": container_id(pod, container["name"]),
        }
        statuses.append({**_container(pod, container, {"terminated": terminated}), "ready": True})
    return statuses


def _conditions(at: str, *, initialized: bool, ready: bool, completed: bool = False) -> list[dict[str, Any]]:
    values = {"Initialized": initialized, "Ready": ready, "ContainersReady": ready, "PodScheduled": True}
    conditions = []
    for kind, value in values.items():
        condition = {"type": kind, "status": str(value), "lastProbeTime": None, "lastTransitionTime": at}
        if completed and kind != "PodScheduled":
            condition["reason"] = "PodCompleted"
        conditions.append(condition)
    return conditions


def _start_time(pod: Mapping[str, Any], otherwise: str) -> str:
    return str((pod.get("status") or {}).get("startTime") or otherwise)


def _init(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(pod["spec"].get("initContainers") or ())


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(pod["spec"]["containers"])
