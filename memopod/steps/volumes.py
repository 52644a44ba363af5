"""The volumes of a Pod that a step's result may depend on, by their source and only where mounted.

Argo lists volumes in no stable order, and the API server adds one with a random name for the
service account's token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MOUNTS = ("volumeMounts", "volumeDevices")
"""Fields of a container that refer to volumes."""

_ARGOS_FOLDERS = ("var-run-argo", "tmp-dir-argo", "argo-staging", "input-artifacts")
"""Empty at start, and filled by Argo with what the key counts already. (`exec-sa-token`, which only
Argo's own containers mount, counts where a container of the step mounts a volume of that name.)"""
_OFFLOADED = "argo-env-config"
_KNOWN_SOURCES = frozenset(
    # Empty at start, or counted by what they name; all others hold what others wrote.
    ("emptyDir", "ephemeral", "secret", "configMap", "downwardAPI", "projected", "image")
)


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


def unknown_volumes(pod: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of mounted volumes whose content no key can hold: claims, hostPath, NFS, inline CSI, ..."""
    return [
        str(volume.get("name"))
        for volume in counted_volumes(pod, containers)
        if not (volume.keys() - {"name"}) <= _KNOWN_SOURCES or _is_clone(volume)
    ]


def is_argos_volume(pod: Mapping[str, Any], name: str) -> bool:
    """Whether a mount of this name is of a volume that Argo or the API server added."""
    return any(
        volume.get("name") == name and (_is_argos(pod, volume) or _is_token(volume))
        for volume in pod["spec"].get("volumes") or ()
    )


def _is_argos(pod: Mapping[str, Any], volume: Mapping[str, Any]) -> bool:
    name = volume.get("name")
    if name == _OFFLOADED:
        # The ConfigMap with what Argo offloaded is named after the Pod; a user's own is not.
        return bool((volume.get("configMap") or {}).get("name") == pod["metadata"].get("name"))
    return name in _ARGOS_FOLDERS and "emptyDir" in volume


def _is_clone(volume: Mapping[str, Any]) -> bool:
    """Whether a generic ephemeral volume starts with what another volume or a snapshot holds."""
    claim = (volume.get("ephemeral") or {}).get("volumeClaimTemplate") or {}
    spec = claim.get("spec") or {}
    return bool(spec.get("dataSource") or spec.get("dataSourceRef"))


def _is_token(volume: Mapping[str, Any]) -> bool:
    sources = (volume.get("projected") or {}).get("sources") or ()
    return str(volume.get("name", "")).startswith("kube-api-access-") and any(
        "serviceAccountToken" in source for source in sources
    )
