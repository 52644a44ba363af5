"""Times as Kubernetes writes them: RFC 3339 in UTC."""

from datetime import UTC, datetime


def now() -> str:
    """The time now to the second, as in `creationTimestamp`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """The time now to the microsecond, as in a Lease's `renewTime`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
