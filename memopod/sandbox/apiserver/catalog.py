"""What the server serves: kinds of objects, the paths that lead to them, and discovery."""

from dataclasses import dataclass
from typing import Any, Final

from memopod.kube import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    PODS,
    SECRETS,
    TASK_RESULTS,
    WORKFLOWS,
    Resource,
)
from memopod.sandbox.apiserver.statuses import no_such_path

KUBERNETES: Final = "v1.34.0"
"""The version whose behaviour the server follows, as `/version` reports it."""


@dataclass(frozen=True, slots=True)
class Served:
    """A kind of object and its traits.

    `custom`: defined by a CRD (keeps unknown status, needs a resourceVersion in an update).
    `unconditional`: an update may leave the resourceVersion out.
    """

    resource: Resource
    singular: str
    short: tuple[str, ...] = ()
    status: bool = False
    custom: bool = False
    unconditional: bool = False
    generation: bool = False


SERVED: Final = (
    Served(NAMESPACES, "namespace", ("ns",), status=True, unconditional=True),
    Served(PODS, "pod", ("po",), status=True, unconditional=True, generation=True),
    Served(CONFIG_MAPS, "configmap", ("cm",), unconditional=True),
    Served(SECRETS, "secret", unconditional=True),
    Served(EVENTS, "event", ("ev",), unconditional=True),
    Served(LEASES, "lease"),
    Served(MUTATING_WEBHOOKS, "mutatingwebhookconfiguration", generation=True),
    Served(WORKFLOWS, "workflow", ("wf",), custom=True, generation=True),
    Served(TASK_RESULTS, "workflowtaskresult", custom=True, generation=True),
)

BY_RESOURCE: Final = {served.resource: served for served in SERVED}
_BY_PATH: Final = {(s.resource.group, s.resource.version, s.resource.plural): s for s in SERVED}
_VERBS: Final = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names: a collection (no `name`), an object, or its subresource."""

    served: Served
    namespace: str | None = None
    name: str | None = None
    subresource: str | None = None


def find(path: str) -> Target:
    """The target of a request's path; raises StatusError (404) if nothing is served there."""
    parts = path.strip("/").split("/")
    group, rest = _split_group(parts)
    version, rest = rest[0], rest[1:]
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2 and (group, version, rest[2]) in _BY_PATH:
        namespace, rest = rest[1], rest[2:]
    served = _BY_PATH.get((group, version, rest[0]))
    if served is None or len(rest) > 3 or "" in parts:
        raise no_such_path()
    name = rest[1] if len(rest) > 1 else None
    subresource = rest[2] if len(rest) > 2 else None
    if served.resource.namespaced != (namespace is not None) and not (
        served.resource.namespaced and name is None
    ):
        raise no_such_path()
    if subresource is not None and not (subresource == "status" and served.status):
        raise no_such_path()
    return Target(served, namespace, name, subresource)


def _split_group(parts: list[str]) -> tuple[str, list[str]]:
    if parts[0] == "api" and len(parts) >= 3:
        return "", parts[1:]
    if parts[0] == "apis" and len(parts) >= 4:
        return parts[1], parts[2:]
    raise no_such_path()


def discovery(path: str) -> dict[str, Any] | None:
    """The answer to a discovery request (`/api`, `/apis`, `/apis/GROUP/VERSION`, `/version`), or None."""
    return _DISCOVERY.get("/" + path.strip("/"))


def _documents() -> dict[str, dict[str, Any]]:
    documents: dict[str, dict[str, Any]] = {
        "/version": {
            "major": "1",
            "minor": "34",
            "gitVersion": KUBERNETES,
            "gitCommit": "",
            "gitTreeState": "",
            "buildDate": "",
            "goVersion": "",
            "compiler": "",
            "platform": "memopod/sandbox",
        },
        "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    }
    groups = sorted({(s.resource.group, s.resource.version) for s in SERVED})
    listed = []
    for group, version in groups:
        path = f"/apis/{group}/{version}" if group else f"/api/{version}"
        documents[path] = _resource_list(group, version)
        if group:
            described = _group(group, version)
            documents[f"/apis/{group}"] = {"kind": "APIGroup", "apiVersion": "v1", **described}
            listed.append(described)
    documents["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    return documents


def _group(group: str, version: str) -> dict[str, Any]:
    described = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [described], "preferredVersion": described}


def _resource_list(group: str, version: str) -> dict[str, Any]:
    resources = []
    for served in SERVED:
        resource = served.resource
        if (resource.group, resource.version) != (group, version):
            continue
        common = {"singularName": "", "namespaced": resource.namespaced, "kind": resource.kind}
        whole = {"name": resource.plural, "verbs": _VERBS, "shortNames": list(served.short)}
        resources.append({**common, **whole, "singularName": served.singular})
        if served.status:
            name = f"{resource.plural}/status"
            resources.append({**common, "name": name, "verbs": ["get", "patch", "update"]})
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": resources,
    }


_DISCOVERY: Final = _documents()
