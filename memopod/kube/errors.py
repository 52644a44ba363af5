"""What can go wrong in a request to the API server.

    ConfigurationError   no kubeconfig and no service account, or one that cannot be used
    ApiError             the server refused, or did not answer
      Forbidden          401, 403
      NotFound           404
      Conflict           409: the object exists, or has changed since it was read
      Gone               410: the resourceVersion or the continue token is too old
      Invalid            422
      Unavailable        no answer in time, connection refused or cut, 429, 5xx

A message never holds what was sent: the server's own text of a 400 or 422 repeats values of the
object (a Pod's whole spec among them), so of those only the names of the fields are kept.
"""

from collections.abc import Mapping
from typing import Any

_LONGEST_TEXT = 300


class ConfigurationError(OSError):
    """There is no usable configuration for talking to Kubernetes."""


class ApiError(Exception):
    """A request failed. `status` is the HTTP status (0: no answer), `reason` the server's word for it."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Forbidden(ApiError):
    """The credentials are unknown (401) or may not do this (403)."""


class NotFound(ApiError):
    """There is no such object, namespace or kind."""


class Conflict(ApiError):
    """The object exists (reason `AlreadyExists`) or has changed (reason `Conflict`)."""


class Gone(ApiError):
    """The version to go on from is no longer kept: list again."""


class Invalid(ApiError):
    """The server understood the object and does not accept it, or a patch does not fit it."""


class Unavailable(ApiError):
    """No usable answer now; the same request may succeed later."""


_CLASSES: dict[int, type[ApiError]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Unavailable,
}


def from_status(request: str, code: int, status: Mapping[str, Any]) -> ApiError:
    """The error for a `Status` object (or any JSON) that came with HTTP status `code`.

    `request` names what was asked for: `PATCH /api/v1/namespaces/a/pods/b`.
    """
    reason = str(status.get("reason") or "Unknown")
    cls = _CLASSES.get(code, Unavailable if code >= 500 else ApiError)
    return cls(f"{request}: {code} {reason}{_detail(code, status)}", status=code, reason=reason)


def _detail(code: int, status: Mapping[str, Any]) -> str:
    if code in (400, 422):
        causes = (status.get("details") or {}).get("causes") or []
        fields = [f"{cause.get('field', '')} ({cause.get('reason', '')})" for cause in causes]
        return f": {', '.join(fields)}"[:_LONGEST_TEXT] if fields else ""
    text = str(status.get("message") or "")
    return f": {text[:_LONGEST_TEXT]}" if text else ""
