"""Starts the API server: storage, admission, routes, TLS."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
from aiohttp import web

from memopod.sandbox.apiserver.admission import Admission
from memopod.sandbox.apiserver.authentication import Tokens
from memopod.sandbox.apiserver.registry import Registry
from memopod.sandbox.apiserver.routes import Routes
from memopod.sandbox.apiserver.settings import Settings
from memopod.sandbox.apiserver.storage import Storage
from memopod.sandbox.certificates import prepare_state
from memopod.service import start

NAMESPACES = ("default", "kube-system", "memopod", "argo", "pipelines")
"""Created at the first start."""
_SHUTDOWN_SECONDS = 2.0


@dataclass
class Server:
    """A running API server; `port` is the one it listens on."""

    port: int
    storage: Storage
    _admission: Admission
    _routes: Routes
    _runner: web.AppRunner

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """Listen; raises OSError for a port in use or a folder that cannot be written."""
        listener = _listen(settings.listen_host, settings.listen_port)
        try:
            return await cls._start(settings, listener)
        except BaseException:
            listener.close()
            raise

    @classmethod
    async def _start(cls, settings: Settings, listener: socket.socket) -> Self:
        port = int(listener.getsockname()[1])
        state = Path(settings.state)
        files = prepare_state(state, port, host=settings.advertise_host)
        storage = Storage(state / "apiserver.db", history=settings.history)
        admission = Admission(storage)
        registry = Registry(storage, admission)
        registry.ensure_namespaces(*NAMESPACES)
        tokens = Tokens(files.tokens)
        routes = Routes(storage, registry, tokens, bookmark_every=settings.bookmark_seconds)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.apiserver.certificate, files.apiserver.key)
        runner = web.AppRunner(
            routes.application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=context).start()
        return cls(port, storage, admission, routes, runner)

    async def stop(self) -> None:
        """End the watches, answer what is under way, close the database."""
        self._routes.stop_watches()
        await self._runner.cleanup()
        await self._admission.close()
        self.storage.close()


def main(argv: list[str] | None = None) -> int:
    """Run the API server until a signal."""
    return start(
        Settings, argv, lambda settings: lambda stop: _serve(settings, stop),
        prog="python -m memopod.sandbox.apiserver", component="apiserver", prefix="MEMOPOD_APISERVER",
        description="The sandbox's API server: the part of the Kubernetes API that memopod uses.",
    )  # fmt: skip


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    server = await Server.start(settings)
    structlog.get_logger().info("serving", port=server.port)
    try:
        await stop.wait()
    finally:
        await server.stop()


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything is written: a server that cannot listen leaves a running one's files alone."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
