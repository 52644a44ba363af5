"""Start a service, wait for a signal, end it in order."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import structlog


def run(service: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `service(stop)` until it returns.

    SIGTERM and SIGINT set `stop`, a second one ends the process at once. The service starts what it
    needs, waits for `stop`, and shuts down in its own order. Returns the exit status: 0, or 1 after an
    OSError (a port in use, a folder that cannot be written), which is logged without a traceback.
    """
    status = 0
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_signal(service))
    except* OSError as group:
        for error in _leaves(group):
            structlog.get_logger().error("cannot start", error=str(error))
        status = 1
    return status


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform != "linux":
        return None
    import uvloop

    return uvloop.new_event_loop


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


async def _until_signal(service: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        structlog.get_logger().info("stopping", signal=signal.Signals(number).name)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await service(stop)
