"""The standard gRPC health service (grpc.health.v1): one status for the server and for its one service."""

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from metadata_store.rpcs import SERVICE

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class GrpcHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says whether the database answers.

    The package's own asyncio servicer forgets its watchers when one of them leaves, and its watches
    would hold up a shutdown: here they end by themselves.
    """

    def __init__(self) -> None:
        self._serving = False
        self._ended = False
        self._changed = asyncio.Condition()

    @property
    def serving(self) -> bool:
        """What is answered now."""
        return self._serving

    async def set(self, serving: bool) -> None:
        """Change the status, and tell the watchers. Without effect after `end`."""
        if self._ended or serving == self._serving:
            return
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()

    async def end(self) -> None:
        """Not serving from here on; watches end once they have said so."""
        async with self._changed:
            self._serving, self._ended = False, True
            self._changed.notify_all()

    async def Check(  # noqa: N802 (the name on the wire)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer once; NOT_FOUND for a service that is not here."""
        status = self._status(request.service)
        if status == UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 (the name on the wire)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Answer now and at every change, until the server stops."""
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            async with self._changed:
                if self._ended:
                    return
                if self._status(request.service) == last:
                    await self._changed.wait()

    def _status(self, service: str) -> int:
        if service not in {"", SERVICE}:
            return int(UNKNOWN)
        return int(SERVING if self._serving else NOT_SERVING)
