"""What can be wrong with a question. Each error is one line that says what to do."""

from collections.abc import Sequence

_SHOWN = 5
"""How many candidates an error names: what fits on a line or two."""


class LineageError(Exception):
    """The question cannot be answered as it was asked."""


class BadReference(LineageError):
    """The text names no node."""


class NotRecorded(LineageError):
    """The store has no such run, step, output, execution or artifact. `nearest` are names it does have."""

    def __init__(self, what: str, *, nearest: Sequence[str] = (), advice: str = "") -> None:
        self.nearest = tuple(nearest)
        text = f"{what} is not recorded"
        if nearest:
            text += f"; did you mean {listed(nearest)}?"
        elif advice:
            text += f"; {advice}"
        super().__init__(text)


class Ambiguous(LineageError):
    """The name fits several nodes. `candidates` name them unambiguously."""

    def __init__(self, reference: str, candidates: Sequence[str]) -> None:
        self.candidates = tuple(candidates)
        super().__init__(f"{reference!r} fits {len(candidates)} nodes; name one of {listed(candidates)}")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many were left out."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
