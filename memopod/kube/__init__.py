"""Talking to Kubernetes: raw JSON, asyncio, no typed models.

`Client` sends requests, `Informer` keeps a copy of a collection and tells of changes, `LeaderElector`
and `LeaseWatcher` give replicas one leader and a visible heartbeat. Errors are those of `ApiError`.
"""

from memopod.kube.client import Client
from memopod.kube.errors import (
    ApiError,
    ConfigurationError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Unavailable,
)
from memopod.kube.events import emit
from memopod.kube.informer import Informer
from memopod.kube.lease import LeaderElector, LeaseWatcher
from memopod.kube.outputs import fetch_outputs
from memopod.kube.patches import escape, set_metadata_ops
from memopod.kube.resources import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SUBJECT_ACCESS_REVIEWS,
    TASK_RESULTS,
    TOKEN_REVIEWS,
    WORKFLOWS,
    Resource,
)
from memopod.kube.traces import Traces

__all__ = [
    "CONFIG_MAPS",
    "EVENTS",
    "LEASES",
    "MUTATING_WEBHOOKS",
    "NAMESPACES",
    "PODS",
    "SECRETS",
    "SERVICE_ACCOUNTS",
    "SUBJECT_ACCESS_REVIEWS",
    "TASK_RESULTS",
    "TOKEN_REVIEWS",
    "WORKFLOWS",
    "ApiError",
    "Client",
    "ConfigurationError",
    "Conflict",
    "Forbidden",
    "Gone",
    "Informer",
    "Invalid",
    "LeaderElector",
    "LeaseWatcher",
    "NotFound",
    "Resource",
    "Traces",
    "Unavailable",
    "emit",
    "escape",
    "fetch_outputs",
    "set_metadata_ops",
]
