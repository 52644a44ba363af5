"""Asks a server, as one process with so many clients, each with a connection of its own."""

import asyncio
import itertools
import statistics
import time
from contextlib import AsyncExitStack
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


def in_turns(ports, rpc, request, *, clients, seconds, rounds, alone):
    """Ask each of the servers (a port by name) so long in each round, in another order each time.

    What else the machine does then falls on all of them alike, and on those of `alone`: functions by name
    that measure by themselves. Returns a Measured for each round, by name.
    """
    return asyncio.run(_in_turns(ports, rpc, request, clients, seconds, rounds, alone))


async def _in_turns(ports, rpc, request, clients, seconds, rounds, alone):
    names = [*ports, *alone]
    result = {name: [] for name in names}
    async with AsyncExitStack() as stack:
        calls = {
            name: [await _call(stack, port, rpc) for _ in range(clients)] for name, port in ports.items()
        }
        for call in itertools.chain.from_iterable(calls.values()):
            await call(request(), timeout=60)  # connects
        for number in range(-1, rounds):
            for name in names if number % 2 else reversed(names):
                if name in alone:
                    measured = alone[name]()
                else:
                    times, start = [], time.perf_counter()
                    await asyncio.gather(
                        *(_repeat(call, request, start, start + seconds, times) for call in calls[name])
                    )
                    measured = Measured.of(times, time.perf_counter() - start)
                if number >= 0:  # the first round fills caches
                    result[name].append(measured)
    return result


async def _ask(port, calls, seconds):
    """Each of the calls without pause from a client of its own; a Measured for each kind."""
    times = {}
    async with AsyncExitStack() as stack:
        clients = [(await _call(stack, port, rpc), rpc, request) for rpc, request in calls]
        start = time.perf_counter() + 0.3
        await asyncio.gather(
            *(
                _repeat(call, request, start, start + seconds, times.setdefault(rpc, []))
                for call, rpc, request in clients
            )
        )
    return [Measured.of(each, seconds) for each in times.values()]


async def _call(stack, port, rpc):
    """The call on a connection of its own."""
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS))
    return channel.unary_unary(f"/{SERVICE}/{rpc}", request_serializer=None, response_deserializer=None)


async def _repeat(call, request, start, end, times):
    while (began := time.perf_counter()) < end:
        await call(request(), timeout=60)
        if began >= start:
            times.append(time.perf_counter() - began)
