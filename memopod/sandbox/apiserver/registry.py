"""Creates, changes and deletes objects by Kubernetes' rules.

Nothing waits between a read and the write after it (only admission waits, and it comes before), so two
requests cannot overlap and the resourceVersion check needs no lock.
"""

import copy
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memopod.kube import NAMESPACES, PODS, Resource
from memopod.kube.timestamps import now
from memopod.sandbox.apiserver import defaults, statuses, validation
from memopod.sandbox.apiserver.admission import Admission, Creation, User
from memopod.sandbox.apiserver.catalog import BY_RESOURCE, SERVED, Served, Target
from memopod.sandbox.apiserver.patching import patched
from memopod.sandbox.apiserver.selectors import Matches
from memopod.sandbox.apiserver.storage import Storage

Object = dict[str, Any]

_SERVER_FIELDS = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
"""Metadata that only the server writes."""
_FINISHED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Deletion:
    """How to delete: `grace` in seconds, None for the object's own; the rest are preconditions."""

    grace: int | None = None
    uid: str | None = None
    resource_version: str | None = None


class Registry:
    """The objects behind the HTTP routes. Every method raises StatusError."""

    def __init__(self, storage: Storage, admission: Admission) -> None:
        self._storage = storage
        self._admission = admission

    def get(self, target: Target) -> Object:
        """One object."""
        return self._existing(target.served.resource, target.namespace, target.name or "")

    async def create(
        self, target: Target, body: Object, user: User, *, dry_run: bool = False
    ) -> tuple[Object, list[str]]:
        """Admit and store a new object; returns it and the webhooks' warnings."""
        resource = target.served.resource
        item = _received(target, body)
        if item["metadata"].pop("resourceVersion", None):
            raise statuses.bad_request("resourceVersion should not be set on objects to be created")
        for field in _SERVER_FIELDS:
            item["metadata"].pop(field, None)
        self._check_namespace(target)
        if target.served.status:
            item["status"] = {}
        defaults.admit(resource, item)
        defaults.fill_in(resource, item)
        creation = Creation(resource, target.namespace, user, dry_run)
        item, warnings = await self._admission.mutate(creation, item)
        self._finish_new(target.served, item)
        validation.check_new(resource, item)
        # Others were served while webhooks were asked.
        self._check_namespace(target)
        name = item["metadata"]["name"]
        if self._storage.get(resource, target.namespace, name) is not None:
            raise statuses.already_exists(resource, name)
        return (item if dry_run else self._storage.put(resource, item)), warnings

    def replace(self, target: Target, body: Object, *, dry_run: bool = False) -> Object:
        """Replace an object, or its status."""
        before = self.get(target)
        after = _received(target, body)
        version = after["metadata"].get("resourceVersion")
        if not version and not target.served.unconditional:
            message = "Invalid value: 0: must be specified for an update"
            cause = statuses.Cause("metadata.resourceVersion", "FieldValueInvalid", message)
            raise statuses.invalid(target.served.resource, target.name or "", [cause])
        return self._update(target, before, after, dry_run=dry_run)

    def patch(self, target: Target, body: Any, content_type: str, *, dry_run: bool = False) -> Object:
        """Patch an object, or its status."""
        before = self.get(target)
        after = _received(target, patched(before, body, content_type))
        return self._update(target, before, after, dry_run=dry_run)

    def delete(self, target: Target, deletion: Deletion) -> Object:
        """Delete an object and what it owns; returns what is left of it, or a `Status` if it is gone.

        A Pod that is gone is returned too, as real servers do.
        """
        item = self.get(target)
        resource, metadata = target.served.resource, item["metadata"]
        if deletion.uid not in (None, metadata["uid"]):
            why = f"the UID in the precondition ({deletion.uid}) does not match ({metadata['uid']})"
            raise statuses.conflict(resource, metadata["name"], why)
        if deletion.resource_version not in (None, metadata["resourceVersion"]):
            raise statuses.conflict(resource, metadata["name"])
        left = self._delete(resource, item, deletion.grace)
        if left is None and resource == PODS:
            return item
        return left or statuses.success(resource, metadata["name"], metadata["uid"])

    def delete_all(self, resource: Resource, matches: Matches, deletion: Deletion) -> list[Object]:
        """Delete what is selected; returns what that was."""
        items = [item for item in self._storage.items(resource) if matches(item)]
        for item in items:
            # One that another of them owned went with it.
            if self._current(resource, item) is not None:
                self._delete(resource, item, deletion.grace)
        return items

    def ensure_namespaces(self, *names: str) -> None:
        """Create the namespaces that are not there."""
        for name in names:
            if self._storage.get(NAMESPACES, None, name) is None:
                item: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
                defaults.fill_in(NAMESPACES, item)
                self._finish_new(BY_RESOURCE[NAMESPACES], item)
                self._storage.put(NAMESPACES, item)

    def _existing(self, resource: Resource, namespace: str | None, name: str) -> Object:
        item = self._storage.get(resource, namespace, name)
        if item is None:
            raise statuses.not_found(resource, name)
        return item

    def _check_namespace(self, target: Target) -> None:
        if target.namespace is None:
            return
        namespace = self._existing(NAMESPACES, None, target.namespace)
        if namespace["metadata"].get("deletionTimestamp"):
            why = (
                f"unable to create new content in namespace {target.namespace} because it is being terminated"
            )
            raise statuses.forbidden(target.served.resource, "", why)

    def _finish_new(self, served: Served, item: Object) -> None:
        metadata = item["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + defaults.random_suffix()
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now()
        if served.generation:
            metadata["generation"] = 1
        status = defaults.first_status(served.resource, item, metadata["creationTimestamp"])
        if status is not None:
            item["status"] = status

    def _update(self, target: Target, before: Object, after: Object, *, dry_run: bool) -> Object:
        resource = target.served.resource
        old, new = before["metadata"], after["metadata"]
        if new.get("uid") not in (None, old["uid"]):
            why = f"the UID in the precondition ({new['uid']}) does not match ({old['uid']})"
            raise statuses.conflict(resource, old["name"], why)
        if new.get("resourceVersion") not in (None, "", old["resourceVersion"]):
            raise statuses.conflict(resource, old["name"])
        for field in (*_SERVER_FIELDS, "resourceVersion"):
            _keep(field, old, new)
        if target.subresource == "status":
            after = _status_update(before, after)
            validation.check_status(resource, before, after)
        else:
            if target.served.status:
                _keep("status", before, after)
            defaults.fill_in(resource, after)
            validation.check_update(resource, before, after)
        if after == before:
            return before
        if target.served.generation and _intent(target.served, before) != _intent(target.served, after):
            after["metadata"]["generation"] = old["generation"] + 1
        if dry_run:
            return after
        stored = self._storage.put(resource, after)
        if _may_go(stored):
            self._remove(resource, stored)
        return stored

    def _delete(self, resource: Resource, item: Object, grace: int | None) -> Object | None:
        """Delete, or mark for deletion; returns what is left."""
        grace = _grace(resource, item, grace)
        metadata = item["metadata"]
        if grace == 0 and not metadata.get("finalizers"):
            self._remove(resource, item)
            return None
        already = metadata.get("deletionGracePeriodSeconds")
        if metadata.get("deletionTimestamp") and (already is None or already <= grace):
            return item
        marked = {**metadata, "deletionTimestamp": now(), "deletionGracePeriodSeconds": grace}
        return self._storage.put(resource, {**item, "metadata": marked})

    def _remove(self, resource: Resource, item: Object) -> None:
        self._storage.remove(resource, item)
        if resource == NAMESPACES:
            self._empty(item["metadata"]["name"])
        self._delete_dependents(item["metadata"]["uid"])

    def _empty(self, namespace: str) -> None:
        for served in SERVED:
            for item in self._storage.items(served.resource):
                inside = served.resource.namespaced and item["metadata"]["namespace"] == namespace
                if inside and self._current(served.resource, item) is not None:
                    self._storage.remove(served.resource, item)

    def _delete_dependents(self, uid: str) -> None:
        """What the garbage collector does with objects whose only owner is gone, at once."""
        for served in SERVED:
            for item in self._storage.items(served.resource):
                owners = {owner["uid"] for owner in item["metadata"].get("ownerReferences") or []}
                if owners != {uid}:
                    continue
                current = self._current(served.resource, item)
                if current is not None:
                    self._delete(served.resource, current, None)

    def _current(self, resource: Resource, item: Mapping[str, Any]) -> Object | None:
        metadata = item["metadata"]
        return self._storage.get(resource, metadata.get("namespace"), metadata["name"])


def _received(target: Target, body: Any) -> Object:
    """A copy of an object as sent, with the kind, name and namespace that its path says."""
    resource = target.served.resource
    if not isinstance(body, dict) or not isinstance(body.get("metadata", {}), dict):
        raise statuses.bad_request(f"expected a {resource.kind} as a JSON object with metadata")
    item: Object = copy.deepcopy(body)
    for field, expected in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        if item.setdefault(field, expected) != expected:
            raise statuses.bad_request(f"{field}: expected {expected}, got {item[field]!r}")
    metadata = item.setdefault("metadata", {})
    for field, expected_value in (("namespace", target.namespace), ("name", target.name)):
        if expected_value is None:
            continue
        if metadata.get(field) not in (None, "", expected_value):
            raise statuses.bad_request(
                f"the {field} of the object ({metadata[field]}) does not match the {field} on the URL "
                f"({expected_value})"
            )
        metadata[field] = expected_value
    if resource == PODS and not isinstance(item.get("spec"), dict):
        cause = statuses.Cause("spec", "FieldValueRequired", "Required value")
        raise statuses.invalid(resource, metadata.get("name") or "", [cause])
    return item


def _status_update(before: Object, after: Object) -> Object:
    """What an update of `/status` may change: status, labels, annotations and finalizers."""
    result = {**before, "status": after.get("status") or {}}
    result["metadata"] = dict(after["metadata"])
    _keep("ownerReferences", before["metadata"], result["metadata"])
    if "qosClass" in before.get("status", {}):
        result["status"] = {**result["status"], "qosClass": before["status"]["qosClass"]}
    return result


def _keep(field: str, before: Mapping[str, Any], after: Object) -> None:
    if field in before:
        after[field] = before[field]
    else:
        after.pop(field, None)


def _intent(served: Served, item: Mapping[str, Any]) -> Any:
    """The part of an object whose changes its `generation` counts."""
    if not served.custom:
        return item.get("spec", item.get("webhooks"))
    return {key: value for key, value in item.items() if key != "metadata"}


def _grace(resource: Resource, item: Mapping[str, Any], asked: int | None) -> int:
    """Only a Pod that runs on a node gets time to end; its kubelet then deletes it with 0 seconds."""
    if resource != PODS or not item["spec"].get("nodeName") or item["status"].get("phase") in _FINISHED:
        return 0
    return int(item["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)


def _may_go(item: Mapping[str, Any]) -> bool:
    """Whether nothing holds back an object that is being deleted."""
    metadata = item["metadata"]
    return bool(
        metadata.get("deletionTimestamp")
        and not metadata.get("finalizers")
        and not metadata.get("deletionGracePeriodSeconds")
    )
