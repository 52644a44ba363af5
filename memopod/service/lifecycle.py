"""Start a service, wait for a signal, end it in order."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import structlog


def run(service: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `service(stop)` until it returns; SIGTERM and SIGINT set `stop`, a second one ends the process.

    The service starts what it needs, waits for `stop`, and shuts down in its own order. Returns the
    exit status: 0, or 1 after an OSError at start (a port in use, a folder that cannot be written),
    which is logged without a traceback.
    """
    if sys.platform == "linux":
        import uvloop

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    else:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            runner.run(_until_signal(service))
        except OSError as error:
            structlog.get_logger().error("cannot start", error=str(error))
            return 1
    return 0


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
