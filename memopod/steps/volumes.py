"""The volumes of a Pod that a step's result may depend on, by their source and only where mounted.

Argo lists volumes in no stable order, and the API server adds one with a random name for the
service account's token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MOUNTS = ("volumeMounts", "volumeDevices")
"""Fields of a container that refer to volumes."""

_INPUTS = "input-artifacts"
_ARGOS_FOLDERS = ("var-run-argo", "tmp-dir-argo", "argo-staging", _INPUTS)
"""Empty at start, and filled by Argo with what the key counts already. (`exec-sa-token`, which only
Argo's own containers mount, counts where a container of the step mounts a volume of that name.)"""
_OFFLOADED = "argo-env-config"
_KNOWN_SOURCES = frozenset(
    # Empty at start, or counted by what they name; all others hold, or may hold, what others wrote. A
    # generic ephemeral volume is a claim: what it starts with is its storage's affair.
    ("emptyDir", "secret", "configMap", "downwardAPI", "projected", "image")
)
_CA_MAPS = ("kube-root-ca.crt", "openshift-service-ca.crt")
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 (a path)


def counted_volumes(
    pod: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Volumes that these containers mount, sorted by name, without Argo's own and token volumes."""
    mounted = {m.get("name") for c in containers for field in MOUNTS for m in c.get(field) or ()}
    volumes = [
        volume
        for volume in pod["spec"].get("volumes") or ()
        if volume.get("name") in mounted and not _is_argos(pod, volume) and not _is_token(volume)
    ]
    return sorted(volumes, key=lambda volume: str(volume.get("name")))


def unknown_volumes(counted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of those `counted_volumes` whose content no key can hold: claims, hostPath, NFS, CSI, ..."""
    return [str(volume.get("name")) for volume in counted if not (volume.keys() - {"name"}) <= _KNOWN_SOURCES]


def counted_mounts(pod: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Mounts of a container, in their order, without those of Argo's folders and of token volumes.

    Mounts of input artifacts count: which of them is where is Argo's to say, but also podSpecPatch's.
    """
    if not mounts:
        return []
    volumes = {volume.get("name"): volume for volume in pod["spec"].get("volumes") or ()}
    return [mount for mount in mounts if not _is_added(pod, volumes.get(mount.get("name")), mount)]


def _is_added(pod: Mapping[str, Any], volume: Mapping[str, Any] | None, mount: Mapping[str, Any]) -> bool:
    if volume is None or volume.get("name") == _INPUTS:
        return False
    if _is_token(volume):
        return mount.get("mountPath") == _TOKEN_PATH
    return _is_argos(pod, volume)


def _is_argos(pod: Mapping[str, Any], volume: Mapping[str, Any]) -> bool:
    name = volume.get("name")
    if name == _OFFLOADED:
        # The ConfigMap with what Argo offloaded is named after the Pod; a user's own is not.
        return bool((volume.get("configMap") or {}).get("name") == pod["metadata"].get("name"))
    return name in _ARGOS_FOLDERS and "emptyDir" in volume


def _is_token(volume: Mapping[str, Any]) -> bool:
    """Whether the API server added the volume: by its name, and by having nothing that others lack."""
    if not str(volume.get("name", "")).startswith("kube-api-access-"):
        return False
    sources = (volume.get("projected") or {}).get("sources") or ()
    return any("serviceAccountToken" in source for source in sources) and all(
        _is_of_token(source) for source in sources
    )


def _is_of_token(source: Mapping[str, Any]) -> bool:
    if source.keys() == {"serviceAccountToken"}:
        return not source["serviceAccountToken"].get("audience")
    if source.keys() == {"configMap"}:
        return source["configMap"].get("name") in _CA_MAPS
    items = (source.get("downwardAPI") or {}).get("items") or ()
    paths = [(item.get("fieldRef") or {}).get("fieldPath") for item in items]
    return source.keys() == {"downwardAPI"} and paths == ["metadata.namespace"]
