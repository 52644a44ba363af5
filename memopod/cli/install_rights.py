"""Whether each account may do what its component does: SubjectAccessReviews over the rules of deploy/."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from memopod.cli.install_found import FAILED, OK, UNKNOWN, Check
from memopod.cli.installed import Installation
from memopod.kube import SUBJECT_ACCESS_REVIEWS, Client, Forbidden
from memopod.sandbox.control_plane import permissions

_ROLES = {
    "cache-server": ("memopod-cache-server", "cache-server"),
    "janitor": ("memopod-janitor",),
    "metadata-writer": ("memopod-metadata-writer", "metadata-writer"),
}
_AT_ONCE = 16

Attributes = dict[str, str]


async def permissions_of(client: Client, found: Installation, served: str) -> Check:
    """Ask about each verb of each account. `served` is the one namespace that is served, or empty."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def refused(component: str, attributes: Attributes) -> str | None:
        user = f"system:serviceaccount:{found.namespace}:{found.account(component)}"
        groups = [
            "system:serviceaccounts",
            f"system:serviceaccounts:{found.namespace}",
            "system:authenticated",
        ]
        body = {
            "apiVersion": SUBJECT_ACCESS_REVIEWS.api_version, "kind": SUBJECT_ACCESS_REVIEWS.kind,
            "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
        }  # fmt: skip
        async with slots:
            answer = await client.create(SUBJECT_ACCESS_REVIEWS, body)
        if answer["status"]["allowed"]:
            return None
        kind = "/".join(filter(None, (attributes["resource"], attributes.get("subresource"))))
        where = f" in {attributes['namespace']}" if attributes.get("namespace") else ""
        return f"{component} may not {attributes['verb']} {kind}{where}"

    questions = [
        (component, attributes)
        for component in _ROLES
        if component in found.deployments
        for attributes in needs(found, component, served)
    ]
    try:
        answers = await asyncio.gather(*(refused(*question) for question in questions))
    except Forbidden:
        return Check("permissions", UNKNOWN, "you may not create subjectaccessreviews")
    missing = [answer for answer in answers if answer]
    if missing:
        more = f" (and {len(missing) - 3} more)" if len(missing) > 3 else ""
        return Check(
            "permissions", FAILED, "; ".join(missing[:3]) + more,
            "apply the manifests again: their Roles and bindings are what the services need",
        )  # fmt: skip
    return Check("permissions", OK, f"{len(questions)} verbs of {len(_ROLES)} accounts")


def needs(found: Installation, component: str, served: str) -> Iterator[Attributes]:
    """What a component must be allowed, in the words of a review."""
    documents = {(d["kind"], d["metadata"]["name"]): d for d in permissions()}
    for role in _ROLES[component]:
        for kind, namespace in (("ClusterRole", served), ("Role", found.namespace)):
            for rule in documents.get((kind, role), {}).get("rules", ()):
                yield from _attributes(rule, namespace)
    if component == "cache-server" and found.setting("cache-server", "MEMOPOD_CACHE_CERTIFICATES") == "own":
        secret = found.setting(
            "cache-server", "MEMOPOD_CACHE_CERTIFICATE_SECRET", "memopod-cache-certificates"
        )
        hook = found.setting("cache-server", "MEMOPOD_CACHE_WEBHOOK_CONFIGURATION", "memopod-cache")
        for verb, name in (("create", ""), ("get", secret), ("update", secret)):
            yield {
                "verb": verb,
                "group": "",
                "resource": "secrets",
                "namespace": found.namespace,
                "name": name,
            }
        group = "admissionregistration.k8s.io"
        for verb in ("get", "patch"):
            yield {"verb": verb, "group": group, "resource": "mutatingwebhookconfigurations", "name": hook}


def _attributes(rule: Mapping[str, Any], namespace: str) -> Iterator[Attributes]:
    for verb in rule["verbs"]:
        for resource in rule["resources"]:
            kind, _, subresource = resource.partition("/")
            name = (rule.get("resourceNames") or [""])[0]
            if kind == "namespaces":
                # Without a namespace that is served, any will do.
                name = namespace or "default"
            yield {
                "verb": verb, "group": rule["apiGroups"][0], "resource": kind, "subresource": subresource,
                "namespace": namespace or (name if kind == "namespaces" else ""), "name": name,
            }  # fmt: skip
