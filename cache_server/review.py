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
        """The Pod. Raises ValueError for what is no Pod."""
        try:
            pod = msgspec.json.decode(self.object)
        except (ValueError, RecursionError) as error:
            raise ValueError("could not deserialize pod object") from error
        if not _is_pod(pod):
            raise ValueError("could not deserialize pod object: expected metadata and containers")
        checked: dict[str, Any] = pod
        return checked


def _is_pod(pod: Any) -> bool:
    if not isinstance(pod, dict) or not isinstance(pod.get("metadata"), dict):
        return False
    spec = pod.get("spec")
    return isinstance(spec, dict) and isinstance(spec.get("containers"), list)


class Review(msgspec.Struct):
    """An AdmissionReview. Unknown versions and kinds are read too, as Kubeflow's server does."""

    apiVersion: str = ""  # noqa: N815
    request: AdmissionRequest | None = None


decode_review = msgspec.json.Decoder(Review).decode
"""Reads the body of a request. Raises ValueError or RecursionError."""
