"""Events: what happened to an object, for people who look at it with `kubectl describe`."""

import uuid
from collections.abc import Mapping
from typing import Any

import structlog

from memopod.kube.client import Client
from memopod.kube.errors import ApiError
from memopod.kube.resources import EVENTS
from memopod.kube.timestamps import now

_LONGEST_MESSAGE = 1024
"""Characters that the API server accepts."""


async def emit(
    client: Client,
    regarding: Mapping[str, Any],
    *,
    reason: str,
    message: str,
    component: str,
    type: str = "Normal",  # noqa: A002 - the field's own name
) -> None:
    """Record an Event about `regarding`. A failure is logged and not raised: nothing depends on Events."""
    metadata = regarding["metadata"]
    namespace = metadata.get("namespace") or "default"
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": regarding.get("apiVersion", ""),
            "kind": regarding.get("kind", ""),
            "name": metadata["name"],
            "namespace": metadata.get("namespace", ""),
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "reason": reason,
        "message": message[:_LONGEST_MESSAGE],
        "type": type,
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": "",
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "count": 1,
    }
    try:
        await client.create(EVENTS, event, namespace=namespace)
    except ApiError as error:
        structlog.get_logger().warning(
            "event not recorded", reason=reason, object=metadata["name"], error=str(error)
        )
