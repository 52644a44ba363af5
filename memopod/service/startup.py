"""What each service's `main` does before anything is served."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from memopod.service.lifecycle import run
from memopod.service.logs import configure_logs
from memopod.service.settings import parse


class ServiceSettings(Protocol):
    """What the settings of every service hold."""

    @property
    def log_level(self) -> str:
        """`debug`, `info`, `warning` or `error`."""


S = TypeVar("S", bound=ServiceSettings)
Serve = Callable[[asyncio.Event], Awaitable[None]]


def start(
    cls: type[S], argv: Sequence[str] | None, service: Callable[[S], Serve], *,
    prog: str, component: str, prefix: str, description: str,
) -> int:  # fmt: skip
    """Read the settings, set up logs as `component`, and `run` what `service(settings)` makes of them.

    Returns the exit status: 2, after one line on stderr, for a setting that is no good: ValueError or OSError
    out of `service`, which opens and starts nothing yet.
    """
    settings = parse(cls, argv, prog=prog, prefix=prefix, description=description)
    try:
        configure_logs(component, level=settings.log_level)
        serve = service(settings)
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    return run(serve)
