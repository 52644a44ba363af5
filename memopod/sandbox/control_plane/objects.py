"""What a new API server lacks: Argo's kinds, namespaces with their accounts, memopod's permissions."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from memopod.kube import NAMESPACES, SERVICE_ACCOUNTS, TASK_RESULTS, WORKFLOWS, Client, Conflict, NotFound
from memopod.kube.resources import Resource

_CLUSTER_WIDE = (
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
)
_SERVED_SECONDS = 30.0
"""How long a new kind may take until the API server serves it."""

Manifest = dict[str, Any]


def permissions() -> list[Manifest]:
    """The objects of `deploy/base/rbac.yaml`: accounts and what each may do."""
    here = Path(__file__).resolve()
    packaged = here.with_name("rbac.yaml")
    path = packaged if packaged.exists() else here.parents[3] / "deploy" / "base" / "rbac.yaml"
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


async def furnish(client: Client, namespaces: Iterable[str]) -> None:
    """Make Argo's kinds, the namespaces and what Argo and the kubelet of a sandbox may do.

    What is there already stays. Raises ApiError; TimeoutError if a kind is not served in time.
    """
    kinds = yaml.safe_load_all(Path(__file__).with_name("cluster.yaml").read_text(encoding="utf-8"))
    await apply(client, list(kinds))
    for namespace in namespaces:
        await add_namespace(client, namespace)
    async with asyncio.timeout(_SERVED_SECONDS):
        for resource in (WORKFLOWS, TASK_RESULTS):
            while not await _is_served(client, resource):  # noqa: ASYNC110 (only asking tells)
                await asyncio.sleep(0.05)


async def add_namespace(client: Client, name: str) -> None:
    """A namespace and its `default` account, without which no Pod can be created in it."""
    await _create(client, NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    account = {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name},
    }  # fmt: skip
    await _create(client, SERVICE_ACCOUNTS, account, name)


async def apply(client: Client, manifests: Iterable[Manifest]) -> None:
    """Create the objects that are not there, and make the others as they are written here."""
    for manifest in manifests:
        metadata = manifest["metadata"]
        resource = _resource(manifest)
        if not await _create(client, resource, manifest, metadata.get("namespace")):
            # Whole lists, so that a permission that was taken out is taken back.
            await client.patch(resource, metadata["name"], manifest, namespace=metadata.get("namespace"))


async def _create(
    client: Client, resource: Resource, manifest: Manifest, namespace: str | None = None
) -> bool:
    try:
        await client.create(resource, manifest, namespace=namespace)
    except Conflict:
        return False
    return True


def _resource(manifest: Manifest) -> Resource:
    group, _, version = manifest["apiVersion"].rpartition("/")
    kind = manifest["kind"]
    return Resource(group, version, f"{kind.lower()}s", kind, namespaced=kind not in _CLUSTER_WIDE)


async def _is_served(client: Client, resource: Resource) -> bool:
    try:
        await client.list(resource, namespace="default")
    except NotFound:
        return False
    return True
