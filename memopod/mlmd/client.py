"""One channel to the store, and calls by name."""

import asyncio
import random
import time
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from ml_metadata.proto import metadata_store_service_pb2

from memopod.mlmd.errors import StoreError, error

_SERVICE = metadata_store_service_pb2.DESCRIPTOR.services_by_name["MetadataStoreService"]
_MESSAGE_BYTES = 100 * 1024 * 1024

_RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED})

_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A message of the store may quote a node; gRPC's 8 KB would turn such an answer into another error.
    ("grpc.max_metadata_size", 16 * 1024),
    # A store that is restarted is found again at once, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Subchannels are shared within a process otherwise, with their back-off.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Retry:
    """Ask again after UNAVAILABLE or ABORTED, with jittered, doubling pauses.

    Only for calls that may be carried out twice: reads, and writes that the store recognizes.
    """

    seconds: float = 30.0
    """The whole time, first attempt included; then the last error is raised."""
    first_pause: float = 0.1
    longest_pause: float = 5.0


class _Method(NamedTuple):
    path: str
    request: type[Message]
    response: type[Message]


@cache
def _method(rpc: str) -> _Method:
    method = _SERVICE.methods_by_name.get(rpc)
    if method is None:
        raise ValueError(f"{_SERVICE.full_name} has no RPC {rpc!r}")
    return _Method(
        f"/{_SERVICE.full_name}/{rpc}",
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
    )


class StoreClient:
    """A client of the store at `address` ("host:port"); an async context manager.

    `timeout` is the deadline of each attempt in seconds. Nothing is sent before the first call, so
    the store need not be there yet.
    """

    def __init__(self, address: str, *, timeout: float = 10.0, retry: Retry | None = None) -> None:
        self.address = address
        self._timeout = timeout
        self._retry = retry
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls under way end as StoreUnavailable."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def call(
        self,
        rpc: str,
        request: Message,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (a deadline that gRPC sends along)
        retry: Retry | None = None,
    ) -> Any:
        """Send one RPC of MetadataStoreService and return its response message.

        `timeout` (seconds) and `retry` override the client's own. Raises StoreError or one of its kinds,
        ValueError for an RPC that the service does not declare, TypeError for another RPC's request.
        """
        method = _method(rpc)
        if not isinstance(request, method.request):
            raise TypeError(
                f"{rpc}: expected a {method.request.DESCRIPTOR.name}, got a {type(request).__name__}"
            )
        payload = request.SerializeToString()
        limit = self._timeout if timeout is None else timeout
        chosen = retry or self._retry
        if chosen is None:
            return await self._send(rpc, method, payload, limit)
        return await self._persist(rpc, method, payload, limit, chosen)

    async def _persist(
        self, rpc: str, method: _Method, payload: bytes, limit: float, retry: Retry
    ) -> Message:
        end = time.monotonic() + retry.seconds
        pause = retry.first_pause
        while True:
            try:
                return await self._send(rpc, method, payload, min(limit, max(0.001, end - time.monotonic())))
            except StoreError as trouble:
                wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load, guards nothing)
                if trouble.code not in _RETRIED or time.monotonic() + wait >= end:
                    raise
            await asyncio.sleep(wait)
            pause = min(2 * pause, retry.longest_pause)

    async def _send(self, rpc: str, method: _Method, payload: bytes, limit: float) -> Message:
        if self._channel is None:
            raise RuntimeError("the StoreClient is not open: use it as an async context manager")
        send = self._channel.unary_unary(
            method.path, request_serializer=None, response_deserializer=method.response.FromString
        )
        try:
            response: Message = await send(payload, timeout=limit)
        except grpc.aio.AioRpcError as trouble:
            raise error(rpc, trouble.code(), trouble.details() or "") from None
        return response
