"""What a check found."""

from collections.abc import Iterable
from dataclasses import dataclass

OK, FAILED, SKIPPED, UNKNOWN = "ok", "failed", "skipped", "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """`advice` says what to do, where there is something to do."""

    name: str
    status: str
    found: str
    advice: str = ""


def failed_of(checks: Iterable[Check], *names: str) -> str | None:
    """The first of these checks that failed."""
    failed = {check.name for check in checks if check.status == FAILED}
    return next((name for name in names if name in failed), None)
