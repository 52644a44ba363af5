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
OFFLOADED_VOLUME = "argo-env-config"
"""The ConfigMap with what Argo offloaded, where it is named after the Pod."""
TOKEN_PREFIX = "kube-api-access-"  # noqa: S105 (a name)
"""Of the volume that the API server adds for the service account's token; the rest of its name is random."""
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


def added_volumes(pod: Mapping[str, Any]) -> Mapping[Any, str | None]:
    """Names of the volumes that Argo or the API server added -> the only path where a mount of one is
    theirs too, None for any path.
    """
    added: dict[Any, str | None] = {}
    for volume in pod["spec"].get("volumes") or ():
        name = volume.get("name")
        # Of two with one name the last counts; the API server refuses such a Pod anyway.
        added.pop(name, None)
        if name == _INPUTS:
            continue
        if _is_token(volume):
            added[name] = _TOKEN_PATH
        elif _is_argos(pod, volume):
            added[name] = None
    return added


def without_added(
    mounts: Sequence[Mapping[str, Any]], added: Mapping[Any, str | None]
) -> list[Mapping[str, Any]]:
    """The mounts of a container, in their order, without those of `added_volumes`.

    Mounts of input artifacts count: which of them is where is Argo's to say, but also podSpecPatch's.
    """
    return [
        mount
        for mount in mounts
        if (name := mount.get("name")) not in added or added[name] not in (None, mount.get("mountPath"))
    ]


def _is_argos(pod: Mapping[str, Any], volume: Mapping[str, Any]) -> bool:
    name = volume.get("name")
    if name == OFFLOADED_VOLUME:
        # The ConfigMap with what Argo offloaded is named after the Pod; a user's own is not.
        return bool((volume.get("configMap") or {}).get("name") == pod["metadata"].get("name"))
    return name in _ARGOS_FOLDERS and "emptyDir" in volume


def _is_token(volume: Mapping[str, Any]) -> bool:
    """Whether the API server added the volume: by its name, and by having nothing that others lack."""
    if not str(volume.get("name", "")).startswith(TOKEN_PREFIX):
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
