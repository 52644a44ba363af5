"""The metadata store's process: flags, workers, the gRPC server, and its end in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
from ml_metadata.proto import metadata_store_pb2

from memopod.service import Health, Serve, start
from metadata_store import metrics
from metadata_store.connection import (
    describe,
    for_core,
    opened_again,
    prepare_sqlite,
    server_config,
    write_ahead,
)
from metadata_store.health import GrpcHealth
from metadata_store.login import reason
from metadata_store.near import MysqlNear, Near, SqliteNear
from metadata_store.pool import Pool
from metadata_store.probe import Probe
from metadata_store.process import CannotOpen, Opening, WorkerProcess
from metadata_store.server import listen, options, server
from metadata_store.settings import Settings
from metadata_store.type_names import keep_names_unique

_RETRY_SECONDS = 1.0
# The core's words for them.
_DOWNGRADED, _OTHER_SCHEMA = "Downgrade migration was performed", "MLMD database version"
_OLDER = "is older than library version"
_WORKERS = 4


def main(argv: list[str] | None = None) -> int:
    """Run the metadata store until SIGTERM or SIGINT; returns the exit status."""
    return start(
        Settings, argv, _prepare,
        prog="memopod metadata-store", component="metadata-store", prefix="MEMOPOD_METADATA_STORE",
        description="Serve ML Metadata (ml_metadata.MetadataStoreService) over gRPC.",
    )  # fmt: skip


def _prepare(settings: Settings) -> Serve:
    config = server_config(settings)
    options(settings.grpc_channel_arguments)
    for flag in settings.without_meaning():
        structlog.get_logger().warning("flag has no meaning here", flag=flag)
    return lambda stop: serve(settings, config, stop)


async def serve(
    settings: Settings, config: metadata_store_pb2.MetadataStoreServerConfig, stop: asyncio.Event
) -> None:
    """Serve until `stop`, then let the calls under way finish. Raises OSError if it cannot start."""
    path = prepare_sqlite(config.connection_config)
    if not await _make_schema(settings, config, patient=path is None):
        return
    await keep_names_unique(config.connection_config)
    async with _pool(settings, config, path) as pool:
        health, probe = GrpcHealth(), Probe(pool, path)
        grpc_server = server(
            pool, probe, health, arguments=settings.grpc_channel_arguments, access_log=settings.access_log
        )
        port = listen(grpc_server, _address(settings), config)
        async with _http(settings, health), _probing(probe, health):
            await grpc_server.start()
            structlog.get_logger().info("serving", port=port, workers=pool.pids)
            await stop.wait()
            await health.end()
            await grpc_server.stop(settings.drain_seconds)
    structlog.get_logger().info("stopped")


async def _make_schema(
    settings: Settings, config: metadata_store_pb2.MetadataStoreServerConfig, *, patient: bool
) -> bool:
    """Create or upgrade the schema in one process, before several open the database at once.

    False if it was downgraded, after which there is nothing to serve. Raises CannotOpen.
    """
    attempts = max(1, settings.metadata_store_connection_retries) if patient else 1
    connection = config.connection_config
    name = describe(connection)
    opening = Opening(for_core(connection).SerializeToString(), config.migration_options.SerializeToString())
    for left in reversed(range(attempts)):
        try:
            process = await WorkerProcess.open(opening)
        except CannotOpen as error:
            text = str(error)
            if _DOWNGRADED in text:
                structlog.get_logger().info("the schema was downgraded", database=name)
                return False
            text = await reason(connection, error)
            if _OTHER_SCHEMA in text or not left:
                advice = "; --enable_database_upgrade=true upgrades it, for good" if _OLDER in text else ""
                raise CannotOpen(f"cannot open the database {name}: {text}{advice}") from error
            structlog.get_logger().warning("cannot open the database yet", error=text, attempts_left=left)
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            await process.end()
            break
    return True


@asynccontextmanager
async def _pool(
    settings: Settings, config: metadata_store_pb2.MetadataStoreServerConfig, path: str | None
) -> AsyncIterator[Pool]:
    connection = config.connection_config
    near = _near(connection, path)
    pool = Pool(
        Opening(for_core(opened_again(connection)).SerializeToString(), b""),
        near=near,
        workers=settings.workers or _WORKERS,
        one_writer=path is not None,
        depth=settings.queue_depth,
        longest_call=settings.longest_call,
    )
    await pool.start()
    for name, lane in pool.lanes.items():
        metrics.WAITING.labels(name).set_function(partial(getattr, lane, "waiting"))
        metrics.REPLACED.labels(name).set_function(partial(getattr, lane, "replaced"))
    try:
        yield pool
    finally:
        await pool.close()
        if near is not None:
            near.close()  # whoever closes SQLite's file last brings the write-ahead log home


def _near(connection: metadata_store_pb2.ConnectionConfig, path: str | None) -> Near | None:
    """What answers light reads in this process; None where only the workers do."""
    if path is not None:
        if not write_ahead(path):  # only beside such a log does a read never wait for a write
            return None
        try:
            return SqliteNear(path)
        except OSError as error:  # the workers say it if they cannot open it either
            structlog.get_logger().warning("light reads are left to the workers", reason=str(error))
            return None
    if connection.WhichOneof("config") == "mysql" and not connection.mysql.HasField("ssl_options"):
        return MysqlNear(connection.mysql)
    return None


@asynccontextmanager
async def _http(settings: Settings, health: GrpcHealth) -> AsyncIterator[None]:
    if settings.health_port is None:
        yield
        return
    http = Health({"database": lambda: health.serving})
    await http.start(settings.listen_address, settings.health_port)
    try:
        yield
    finally:
        await http.stop()


@asynccontextmanager
async def _probing(probe: Probe, health: GrpcHealth) -> AsyncIterator[None]:
    task = asyncio.create_task(probe.run(health.set), name="database probe")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _address(settings: Settings) -> str:
    host = settings.listen_address or "[::]"  # gRPC takes this for both families, also without IPv6
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{settings.grpc_port}"
