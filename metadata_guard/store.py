"""The metadata store behind the guard."""

from typing import Any, Final, Self

import grpc

from metadata_guard.answers import MESSAGES, SERVICE

_MESSAGE_BYTES: Final = 100 * 1024 * 1024
_SECONDS: Final = 600.0
"""Deadline of calls whose callers set none: the store's own."""
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

    def __init__(self, channel: grpc.aio.Channel, seconds: float = _SECONDS) -> None:
        self._channel = channel
        self._seconds = seconds

    @staticmethod
    def channel(address: str) -> grpc.aio.Channel:
        """A channel to the store at HOST:PORT."""
        return grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MESSAGE_BYTES),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )

    def within(self, seconds: float | None) -> Self:
        """The same store, each of whose calls may take so long."""
        return type(self)(self._channel, min(seconds or _SECONDS, _SECONDS))

    async def call(self, rpc: str, request: Any) -> Any:
        """The answer to an RPC. Raises StoreError."""
        send = self._channel.unary_unary(f"/{SERVICE.full_name}/{rpc}")
        try:
            payload = await send(request.SerializeToString(), timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            told = (error.details() or "") if error.code() in _TOLD else f"the store failed at {rpc}"
            raise StoreError(error.code(), told) from None
        answer = MESSAGES[rpc][1].FromString(payload)
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
