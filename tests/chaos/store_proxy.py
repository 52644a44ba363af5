"""A gRPC proxy in front of a metadata store that loses calls, answers, or both's time."""

import asyncio
import random

import grpc
import grpc.aio

_OPTIONS = [
    ("grpc.max_receive_message_length", 1 << 28),
    ("grpc.max_send_message_length", 1 << 28),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
]


class StoreProxy:
    """`rate` of the calls go wrong: refused or cut off, before or after the store carried them out."""

    def __init__(self, target, *, seed, rate=0.05):
        self.rate, self.faults, self.calls = rate, 0, 0
        self._target = target
        self._random = random.Random(seed)
        self._server = grpc.aio.server(options=_OPTIONS)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"

    async def start(self):
        self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        self._server.add_generic_rpc_handlers([_Handler(self)])
        await self._server.start()

    async def stop(self):
        await self._server.stop(0.1)
        await self._channel.close()

    async def forward(self, path, request, context):
        self.calls += 1
        fault = None
        if self._random.random() < self.rate:
            self.faults += 1
            fault = self._random.choice(
                ["unavailable", "aborted", "answer lost", "too late", "late and lost"]
            )
        if fault == "unavailable":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the proxy refuses")
        if fault == "aborted":
            await context.abort(grpc.StatusCode.ABORTED, "the proxy aborts")
        if fault == "too late":
            await asyncio.sleep((context.time_remaining() or 1.0) + 0.1)
        call = self._channel.unary_unary(path)
        try:
            answer = await call(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        if fault == "answer lost":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the proxy loses the answer")
        if fault == "late and lost":
            await asyncio.sleep((context.time_remaining() or 1.0) + 0.1)
        return answer


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, proxy):
        self._proxy = proxy

    def service(self, details):
        async def handle(request, context):
            return await self._proxy.forward(details.method, request, context)

        return grpc.unary_unary_rpc_method_handler(handle)
