"""Refusals, as the `Status` objects that a Kubernetes API server answers with.

Reasons and codes: https://pkg.go.dev/k8s.io/apimachinery/pkg/apis/meta/v1#StatusReason
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memopod.kube import Resource


@dataclass(frozen=True, slots=True)
class Cause:
    """What is wrong with one field: `reason` is `FieldValueInvalid`, `FieldValueForbidden`, ..."""

    field: str
    reason: str
    message: str


class StatusError(Exception):
    """A request is refused with HTTP status `code` and the `Status` object of `body()`."""

    def __init__(
        self, code: int, reason: str, message: str, *, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def body(self) -> dict[str, Any]:
        """The `Status` object."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            status["details"] = self.details
        return status


def success(resource: Resource, name: str, uid: str) -> dict[str, Any]:
    """The `Status` of a deletion that is done."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {**_details(resource, name), "uid": uid},
    }


def unauthorized() -> StatusError:
    """No token, or one that is not in the list."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: Resource, name: str, why: str) -> StatusError:
    """Known, and not allowed."""
    message = f'{_qualified(resource)} "{name}" is forbidden: {why}'
    return StatusError(403, "Forbidden", message, details=_details(resource, name))


def bad_request(message: str) -> StatusError:
    """Not understood."""
    return StatusError(400, "BadRequest", message)


def not_found(resource: Resource, name: str) -> StatusError:
    """There is no such object."""
    message = f'{_qualified(resource)} "{name}" not found'
    return StatusError(404, "NotFound", message, details=_details(resource, name))


def no_such_path() -> StatusError:
    """There is no such kind of object here, or no such path at all."""
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def not_allowed() -> StatusError:
    """The method does not exist for this path."""
    return StatusError(
        405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
    )


def already_exists(resource: Resource, name: str) -> StatusError:
    """An object of that name is there."""
    message = f'{_qualified(resource)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, details=_details(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> StatusError:
    """The object is not the one, or not in the version, that the request is about."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {_qualified(resource)} "{name}": {why}'
    return StatusError(409, "Conflict", message, details=_details(resource, name))


def expired(message: str) -> StatusError:
    """The version, or the continue token, is older than what is kept."""
    return StatusError(410, "Expired", message)


def unsupported_media_type(got: str, supported: Sequence[str]) -> StatusError:
    """The body is of a kind that is not accepted here."""
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        f"{', '.join(supported)}; got {got}"
    )
    return StatusError(415, "UnsupportedMediaType", message)


def invalid(resource: Resource, name: str, causes: Sequence[Cause]) -> StatusError:
    """The object breaks a rule; each cause names the field."""
    text = ", ".join(f"{cause.field}: {cause.message}" for cause in causes)
    qualified = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    details = _details(resource, name)
    details["kind"] = resource.kind
    details["causes"] = [
        {"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes
    ]
    return StatusError(422, "Invalid", f'{qualified} "{name}" is invalid: {text}', details=details)


def patch_does_not_fit() -> StatusError:
    """A JSON patch that cannot be applied to the object."""
    return StatusError(422, "Invalid", "the server rejected our request due to an error in our request")


def internal(message: str) -> StatusError:
    """Something behind the server failed."""
    return StatusError(500, "InternalError", f"Internal error occurred: {message}")


def _qualified(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def _details(resource: Resource, name: str) -> dict[str, Any]:
    details = {"name": name, "kind": resource.plural}
    if resource.group:
        details["group"] = resource.group
    return details
