"""The metadata store behind the guard."""

import asyncio
from pathlib import Path
from typing import Any, Final, Self

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from metadata_guard.answers import MESSAGES, SERVICE

_MESSAGE_BYTES: Final = 100 * 1024 * 1024
SECONDS: Final = 600.0
"""Deadline of calls whose callers set none: the store's own."""
_HEALTH_SECONDS: Final = 5.0
_BALANCED: Final = '{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}'
"""To each replica in turn that says it serves (as far as it has a health service)."""
_TOLD: Final = frozenset(
    {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
)
"""Statuses whose messages speak of the request; those of others may quote what is stored."""


class StoreError(Exception):
    """The store refused, or did not answer."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Store:
    """Calls by name, parsed; what this version's messages do not know is dropped from answers."""

    def __init__(self, channel: grpc.aio.Channel, end: float | None = None) -> None:
        self._channel = channel
        self._end = end

    @staticmethod
    def channel(
        address: str, credentials: grpc.ChannelCredentials | None = None, name: str = ""
    ) -> grpc.aio.Channel:
        """A channel to the store at HOST:PORT, to all addresses that this stands for.

        With `credentials` over TLS, where the store's certificate has `name` (or else its host).
        """
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.service_config", _BALANCED),
            # A replica whose machine is gone says nothing: ask.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        ]
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        if name:
            options.append(("grpc.ssl_target_name_override", name))
        return grpc.aio.secure_channel(address, credentials, options=options)

    @staticmethod
    def credentials(ca: str, certificate: str, key: str) -> grpc.ChannelCredentials:
        """What speaks TLS, from PEM files; "" for none. Raises OSError if one cannot be read."""
        read = [Path(file).read_bytes() if file else None for file in (ca, key, certificate)]
        return grpc.ssl_channel_credentials(*read)

    def until(self, end: float) -> Self:
        """The same store, all of whose calls must be over at `end`, on the event loop's clock."""
        return type(self)(self._channel, end)

    async def serving(self) -> bool:
        """Whether the store says that it serves; one without a health service (upstream's), if it answers."""
        check = health_pb2_grpc.HealthStub(self._channel).Check
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
        except grpc.aio.AioRpcError as error:
            return bool(error.code() == grpc.StatusCode.UNIMPLEMENTED)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def call(self, rpc: str, request: Any) -> Any:
        """The answer to an RPC. Raises StoreError."""
        send = self._channel.unary_unary(f"/{SERVICE.full_name}/{rpc}")
        try:
            payload = await send(request.SerializeToString(), timeout=self._remaining())
        except grpc.aio.AioRpcError as error:
            told = (error.details() or "") if error.code() in _TOLD else f"the store failed at {rpc}"
            raise StoreError(error.code(), told) from None
        try:
            answer = MESSAGES[rpc][1].FromString(payload)
        except DecodeError:
            raise StoreError(grpc.StatusCode.INTERNAL, f"the store's answer to {rpc} is none") from None
        answer.DiscardUnknownFields()
        return answer

    async def ask(self, rpc: str, request: Any) -> Any:
        """The same, where NOT_FOUND is an empty answer."""
        try:
            return await self.call(rpc, request)
        except StoreError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            return MESSAGES[rpc][1]()

    def _remaining(self) -> float:
        if self._end is None:
            return SECONDS
        return max(0.0, self._end - asyncio.get_running_loop().time())
