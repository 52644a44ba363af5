"""Asks a server, as one process with so many clients, each with a connection of its own."""

import asyncio
import statistics
import time
from dataclasses import dataclass

import grpc

SERVICE = "ml_metadata.MetadataStoreService"
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Measured:
    """Calls a second, and milliseconds."""

    rate: float
    p50: float
    p99: float

    @classmethod
    def of(cls, times, seconds):
        cuts = statistics.quantiles(times, n=100) if len(times) > 1 else times * 99
        return cls(len(times) / seconds, cuts[49] * 1e3, cuts[98] * 1e3)


def ask(port, rpc, request, *, clients, seconds):
    return asyncio.run(_ask(port, [(rpc, request)] * clients, seconds))[0]


def beside(port, heavy, light, *, seconds, heavy_clients=1):
    """Measure the light call while others ask the heavy one without pause; (light, heavy)."""
    return asyncio.run(_ask(port, [light] + [heavy] * heavy_clients, seconds))


async def _ask(port, calls, seconds):
    """Each of the calls without pause from a client of its own; a Measured for each kind."""
    times = {}
    start = time.perf_counter() + 0.3
    await asyncio.gather(*(_client(port, rpc, request, start, start + seconds, times.setdefault(rpc, []))
                           for rpc, request in calls))  # fmt: skip
    return [Measured.of(each, seconds) for each in times.values()]


async def _client(port, rpc, request, start, end, times):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{rpc}", request_serializer=None, response_deserializer=None)
        while (began := time.perf_counter()) < end:
            await call(request(), timeout=60)
            if began >= start:
                times.append(time.perf_counter() - began)
