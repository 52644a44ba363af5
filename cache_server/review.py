"""The AdmissionReview as it is sent and answered: only what memopod reads of it is decoded."""

from typing import Any

import msgspec

VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")


class Resource(msgspec.Struct):
    """What kind of object a request is about."""

    group: str = ""
    version: str = ""
    resource: str = ""


class User(msgspec.Struct):
    """Who made the request to the API server."""

    username: str = ""


class AdmissionRequest(msgspec.Struct):
    """One object that is about to be written. `object` is its JSON text, not decoded yet.

    `dryRun`: nothing is going to be written, by nobody.
    """

    uid: str = ""
    resource: Resource | None = None
    operation: str = "CREATE"
    namespace: str = ""
    userInfo: User | None = None  # noqa: N815 (Kubernetes' name)
    dryRun: bool | None = None  # noqa: N815
    object: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def username(self) -> str:
        """Who made the request, empty if it does not say."""
        return self.userInfo.username if self.userInfo else ""

    @property
    def is_new_pod(self) -> bool:
        """Whether a Pod is about to be created."""
        what = self.resource
        return (
            what is not None
            and (what.resource, what.version, what.group) == ("pods", "v1", "")
            and self.operation == "CREATE"
        )

    def pod(self) -> dict[str, Any]:
        """The Pod's `metadata` and `spec`. Raises ValueError for what is no Pod.

        Not decoded is what admission never asks for: `status`, `managedFields`.
        """
        try:
            pod = _decode_pod(self.object)
        except (ValueError, RecursionError) as error:
            raise ValueError("could not deserialize pod object") from error
        if not isinstance(pod.spec.get("containers"), list):
            raise ValueError("could not deserialize pod object: expected containers")  # noqa: TRY004
        metadata = {
            name: value for name in _METADATA if (value := getattr(pod.metadata, name)) is not msgspec.UNSET
        }
        return {"metadata": metadata, "spec": pod.spec}


class _Metadata(msgspec.Struct):
    """All of ObjectMeta but `managedFields`, which can be half of a review."""

    name: Any = msgspec.UNSET
    generateName: Any = msgspec.UNSET  # noqa: N815 (Kubernetes' names)
    namespace: Any = msgspec.UNSET
    uid: Any = msgspec.UNSET
    resourceVersion: Any = msgspec.UNSET  # noqa: N815
    generation: Any = msgspec.UNSET
    creationTimestamp: Any = msgspec.UNSET  # noqa: N815
    deletionTimestamp: Any = msgspec.UNSET  # noqa: N815
    deletionGracePeriodSeconds: Any = msgspec.UNSET  # noqa: N815
    labels: Any = msgspec.UNSET
    annotations: Any = msgspec.UNSET
    ownerReferences: Any = msgspec.UNSET  # noqa: N815
    finalizers: Any = msgspec.UNSET
    selfLink: Any = msgspec.UNSET  # noqa: N815


_METADATA = _Metadata.__struct_fields__


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: dict[str, Any]


_decode_pod = msgspec.json.Decoder(_Pod).decode


class Review(msgspec.Struct):
    """An AdmissionReview. Unknown versions and kinds are read too, as Kubeflow's server does."""

    apiVersion: str = ""  # noqa: N815
    request: AdmissionRequest | None = None


decode_review = msgspec.json.Decoder(Review).decode
"""Reads the body of a request. Raises ValueError or RecursionError."""
