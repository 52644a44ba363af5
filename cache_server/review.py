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


class Owner(msgspec.Struct, gc=False):
    """An owner reference."""

    apiVersion: str = ""  # noqa: N815 (Kubernetes' names)
    kind: str = ""
    name: str = ""
    uid: str = ""


class Metadata(msgspec.Struct, gc=False, omit_defaults=True):
    """What admission may ask of an ObjectMeta. Not read is `managedFields`, which can be half of a review."""

    name: str = ""
    generateName: str = ""  # noqa: N815
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815
    creationTimestamp: str | None = None  # noqa: N815
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    ownerReferences: list[Owner] | None = None  # noqa: N815


class PodText(msgspec.Struct, gc=False):
    """A Pod: its `spec` is JSON text, not decoded yet. `status` is not read."""

    metadata: Metadata
    spec: msgspec.Raw

    def decoded(self) -> dict[str, Any]:
        """The Pod's `metadata` and `spec`. Raises ValueError for what is no Pod."""
        try:
            spec = _decode_spec(self.spec)
        except (ValueError, RecursionError) as error:
            raise ValueError("could not deserialize pod object") from error
        if not isinstance(spec.get("containers"), list):
            raise ValueError("could not deserialize pod object: expected containers")  # noqa: TRY004
        return {"metadata": msgspec.to_builtins(self.metadata), "spec": spec}


_decode_spec = msgspec.json.Decoder(dict[str, Any]).decode


class _Request(msgspec.Struct, gc=False):
    """What is asked about any object."""

    uid: str = ""
    resource: Resource | None = None
    operation: str = "CREATE"
    namespace: str = ""
    userInfo: User | None = None  # noqa: N815 (Kubernetes' name)
    dryRun: bool | None = None  # noqa: N815

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
            and what.resource == "pods"
            and what.version == "v1"
            and not what.group
            and self.operation == "CREATE"
        )


class AdmissionRequest(_Request, gc=False):
    """One object that is about to be written: a Pod, or something else (`object` is None).

    `dryRun`: nothing is going to be written, by nobody.
    """

    object: PodText | None = None

    def pod(self) -> PodText:
        """The Pod. Raises ValueError for what is no Pod."""
        if self.object is None:
            raise ValueError("could not deserialize pod object")
        return self.object


class Review(msgspec.Struct, gc=False):
    """An AdmissionReview. Unknown versions and kinds are read too, as Kubeflow's server does."""

    apiVersion: str = ""  # noqa: N815
    request: AdmissionRequest | None = None


class _AnyReview(msgspec.Struct, gc=False):
    """A review of any object, without it."""

    request: _Request | None = None
    apiVersion: str = ""  # noqa: N815


_decode_review = msgspec.json.Decoder(Review).decode
_decode_any = msgspec.json.Decoder(_AnyReview).decode


def decode_review(body: bytes) -> Review:
    """Read the body of a request. Raises ValueError or RecursionError."""
    try:
        return _decode_review(body)
    except msgspec.ValidationError:
        review = _decode_any(body)
        if review.request is None:
            return Review(review.apiVersion)
        return Review(review.apiVersion, AdmissionRequest(**msgspec.structs.asdict(review.request)))
