"""A TCP proxy that makes a real server slow, silent or absent for one of its clients."""

import asyncio
import contextlib


class Proxy:
    """Hands on what comes, `delay` seconds later; `silent`: not at all, while connections stay open."""

    def __init__(self, port):
        self._to = port
        self._tasks = set()
        self._connections = set()
        self.delay = 0.0
        self.silent = False

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, port):
        proxy = cls(port)
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            proxy.cut()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    def cut(self):
        """End all connections."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        there = None
        try:
            to_reader, there = await asyncio.open_connection("127.0.0.1", self._to)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, there))
                group.create_task(self._copy(to_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    each.close()
            self._tasks.discard(asyncio.current_task())

    async def _copy(self, reader, writer):
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self.delay)
            if not self.silent:
                writer.write(data)
                await writer.drain()
        writer.close()
