"""The gRPC server: bytes in, bytes out, the core's codes and messages."""

import time
from collections.abc import Awaitable, Callable

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from ml_metadata.proto import metadata_store_pb2

from metadata_store.frames import Answer
from metadata_store.health import GrpcHealth
from metadata_store.metrics import CALLS, SECONDS
from metadata_store.pool import NoWorker, Overloaded, Pool
from metadata_store.probe import Gone, Probe
from metadata_store.rpcs import RPCS, SERVED, SERVICE

MESSAGE_BYTES = 100 * 1024 * 1024
METADATA_BYTES = 16 * 1024
_LONGEST_MESSAGE = 3000  # bytes of an error; clients refuse more than 8 KB of headers, percent-encoded

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Handler = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


def server(
    pool: Pool, probe: Probe, health: GrpcHealth, *, arguments: str = "", access_log: bool = False
) -> grpc.aio.Server:
    """A server, not yet listening. `arguments` are upstream's channel arguments, `key=value,...`."""
    result = grpc.aio.server(options=options(arguments))
    handlers = {
        rpc: grpc.unary_unary_rpc_method_handler(
            _measured(rpc, _served(rpc, pool, probe) if rpc in SERVED else _unimplemented(rpc), access_log)
        )
        for rpc in RPCS
    }
    result.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(health, result)
    names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, result)
    return result


def options(arguments: str) -> list[tuple[str, int | str]]:
    """Our channel arguments, and those given, which win. Raises ValueError if one is not `key=value`."""
    chosen: dict[str, int | str] = {
        "grpc.max_receive_message_length": MESSAGE_BYTES,
        "grpc.max_send_message_length": MESSAGE_BYTES,
        "grpc.max_metadata_size": METADATA_BYTES,
        # Between the soft and this hard limit gRPC refuses at random; the soft one is the contract.
        "grpc.absolute_max_metadata_size": 2 * METADATA_BYTES,
        # With it a second server on the same port would start, and take a part of the calls.
        "grpc.so_reuseport": 0,
    }
    for argument in filter(None, (part.strip() for part in arguments.split(","))):
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"--grpc_channel_arguments: expected key=value, got {argument!r}")
        chosen[key] = int(value) if value.lstrip("-").isdigit() else value
    return list(chosen.items())


def listen(server: grpc.aio.Server, address: str, tls: metadata_store_pb2.MetadataStoreServerConfig) -> int:
    """Listen on HOST:PORT, with TLS if the configuration has keys; returns the port.

    Raises OSError if the address cannot be used.
    """
    try:
        if tls.HasField("ssl_config"):
            return int(server.add_secure_port(address, _credentials(tls.ssl_config)))
        return int(server.add_insecure_port(address))
    except RuntimeError as error:  # gRPC knows no other
        raise OSError(f"cannot listen on {address}: the port is in use or the address is not here") from error


def _credentials(
    ssl: "metadata_store_pb2.MetadataStoreServerConfig.SSLConfig",
) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )


def _served(rpc: str, pool: Pool, probe: Probe) -> Handler:
    async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            probe.check_file()
            answer = await pool.call(rpc, request, context.time_remaining())
        except (Overloaded, NoWorker, Gone) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"{rpc} did not end in time")
        if answer.code != 0:
            await context.abort(_CODES.get(answer.code, grpc.StatusCode.UNKNOWN), _message(answer))
        return answer.response

    return handle


def _unimplemented(rpc: str) -> Handler:
    async def handle(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        text = f"{rpc} is declared but was never implemented by ml-metadata: ask GetLineageSubgraph"
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
        raise AssertionError("abort raises")

    return handle


def _measured(rpc: str, handle: Handler, access_log: bool) -> Handler:
    seconds, count_ok = SECONDS.labels(rpc), CALLS.labels(rpc, "OK")
    log = structlog.get_logger() if access_log else None

    async def measured(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        started = time.perf_counter()
        code = "CANCELLED"  # the caller gave up: nothing below says otherwise
        sent = 0
        try:
            response = await handle(request, context)
            code, sent = "OK", len(response)
            return response
        except grpc.aio.AbortError:
            code = _name(context.code())
            raise
        finally:
            took = time.perf_counter() - started
            seconds.observe(took)
            if log is not None:
                log.info(
                    "call", rpc=rpc, code=code, seconds=round(took, 6), peer=context.peer(),
                    request_bytes=len(request), response_bytes=sent,
                )  # fmt: skip
            (count_ok if code == "OK" else CALLS.labels(rpc, code)).inc()

    return measured


def _name(code: grpc.StatusCode | int) -> str:
    if isinstance(code, int):
        code = _CODES[code]
    return str(code.name)


def _message(answer: Answer) -> str:
    """The core's message. Some quote a whole node, more than a header holds: then its middle is left out,
    since what clients look for ("already exists", "Duplicate entry") stands at its ends.
    """
    text = answer.error
    if len(text) > _LONGEST_MESSAGE:
        half = _LONGEST_MESSAGE // 2
        text = text[:half] + b" ... " + text[-half:]
    return text.decode(errors="replace")
