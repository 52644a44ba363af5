"""Times as Kubernetes writes them: RFC 3339 in UTC."""

from datetime import UTC, datetime


def to_text(moment: datetime) -> str:
    """`2026-01-31T12:00:00Z`, with microseconds only where there are any."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{utc.isoformat()[:-6]}Z"


def to_seconds_text(moment: datetime) -> str:
    """To the second, rounded down: what `metav1.Time` fields take."""
    return to_text(moment.replace(microsecond=0))


def from_text(text: object) -> datetime | None:
    """The inverse of `to_text`; None for anything that is no time with a zone (or too far away for UTC)."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None
