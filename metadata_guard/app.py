"""The guard's process: flags, the gRPC server, and its end in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from memopod.kube import Client
from memopod.service import Health, start
from metadata_guard import metrics
from metadata_guard.answers import SERVICE
from metadata_guard.guard import Guard, Refused
from metadata_guard.reviews import Reviews
from metadata_guard.settings import Settings
from metadata_guard.store import Store

_DRAIN_SECONDS = 20.0
_CHECK_SECONDS = 2.0
_CALLS_AT_ONCE = 2_000
"""Those that wait for a review included; further ones are refused."""
_OPTIONS = [
    ("grpc.max_receive_message_length", 100 * 1024 * 1024),
    ("grpc.max_send_message_length", 100 * 1024 * 1024),
    ("grpc.max_metadata_size", 32 * 1024),  # a token of a service account has 1 to 4 KB
    ("grpc.so_reuseport", 0),
]
Handler = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


def main(argv: list[str] | None = None) -> int:
    """Run the metadata guard until SIGTERM or SIGINT; returns the exit status."""
    return start(
        Settings, argv, lambda settings: lambda stop: serve(settings, stop),
        prog="memopod metadata-guard", component="metadata-guard", prefix="MEMOPOD_METADATA_GUARD",
        description="Answer reads of the metadata store within the namespaces of their callers.",
    )  # fmt: skip


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop`, then let the calls under way finish. Raises OSError if it cannot start."""
    async with (
        Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-guard") as client,
        _channel(settings) as channel,
    ):
        reviews = Reviews(client, audiences=settings.audiences, seconds=settings.review_seconds)
        store = Store(channel)
        guard = Guard(reviews, store, inherit=settings.inherit, concurrency=settings.concurrency)
        following = _Following(store)
        server = _server(guard, following.status)
        port = _listen(server, settings)
        http = Health({"store": lambda: following.serving})
        health_port = await http.start(settings.health_host, settings.health_port)
        async with following.run():
            await server.start()
            structlog.get_logger().info("serving", port=port, health_port=health_port, store=settings.store)
            try:
                await stop.wait()
            finally:
                await following.end()
                await server.stop(_DRAIN_SECONDS)
                await reviews.close()
                await http.stop()
    structlog.get_logger().info("stopped")


class _Following:
    """Says that the guard serves while its store says so: asked every two seconds."""

    def __init__(self, store: Store) -> None:
        self.status = health.aio.HealthServicer()
        self.serving = False
        self._store = store
        self._ended = False

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Follow the store until the block ends."""
        await self.status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        task = asyncio.create_task(self._follow(), name="store's health")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def end(self) -> None:
        """Not serving from here on."""
        self.serving, self._ended = False, True
        await self.status.enter_graceful_shutdown()

    async def _follow(self) -> None:
        said = health_pb2.HealthCheckResponse
        while not self._ended:
            serving = await self._store.serving()
            if serving != self.serving and not self._ended:
                self.serving = serving
                await self.status.set("", said.SERVING if serving else said.NOT_SERVING)
                structlog.get_logger().info("the store is there" if serving else "the store does not serve")
            await asyncio.sleep(_CHECK_SECONDS)


def _channel(settings: Settings) -> grpc.aio.Channel:
    if not settings.store_tls:
        return Store.channel(settings.store)
    credentials = Store.credentials(settings.store_ca, settings.store_certificate, settings.store_key)
    return Store.channel(settings.store, credentials, settings.store_name)


def _server(guard: Guard, status: health.aio.HealthServicer) -> grpc.aio.Server:
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_CALLS_AT_ONCE)
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(_handler(guard, method.name))
        for method in SERVICE.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    return server


def _handler(guard: Guard, rpc: str) -> Handler:
    async def handle(payload: bytes, context: grpc.aio.ServicerContext) -> bytes:
        given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        # Of two nobody knows which a proxy before this has looked at.
        authorization = given[0] if len(given) == 1 else None
        try:
            answer = await guard.call(rpc, payload, authorization, context.time_remaining())
        except Refused as refused:
            metrics.CALLS.labels(rpc, refused.code.name).inc()
            await context.abort(refused.code, str(refused))
        metrics.CALLS.labels(rpc, "OK").inc()
        return answer

    return handle


def _listen(server: grpc.aio.Server, settings: Settings) -> int:
    host = settings.listen_address
    address = f"{f'[{host}]' if ':' in host else host}:{settings.grpc_port}"
    try:
        if settings.tls_certificate:
            return int(server.add_secure_port(address, _credentials(settings)))
        return int(server.add_insecure_port(address))
    except RuntimeError as error:  # gRPC knows no other
        raise OSError(f"cannot listen on {address}: the port is in use or the address is not here") from error


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    """The certificates in the files as they are at each new connection. Raises OSError or ValueError."""
    files = [
        Path(name) for name in (settings.tls_key, settings.tls_certificate, settings.tls_client_ca) if name
    ]

    def read() -> tuple[bytes, ...]:
        return tuple(file.read_bytes() for file in files)

    def configuration(key: bytes, certificate: bytes, *ca: bytes) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *ca)

    given = read()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        try:
            found = read()
        except OSError as error:  # in the middle of a renewal: what is known is good
            structlog.get_logger().warning("cannot read the certificate", error=str(error))
            return None
        if found == given:
            return None
        given = found
        structlog.get_logger().info("the certificate is renewed", file=settings.tls_certificate)
        return configuration(*given)

    return grpc.dynamic_ssl_server_credentials(
        configuration(*given), renewed, require_client_authentication=bool(settings.tls_client_ca)
    )
