"""Further processes of a replica that answer admission requests on the same port.

The first process leads or follows, decides, records and keeps certificates; the others only answer. It
tells them through shared memory until when they may take it to be alive, so that nobody holds Pods for a
process that hangs or is gone; they hand what they counted to it, and end when it does.
"""

import asyncio
import multiprocessing
import sys
import time
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any

import structlog

from cache_server import configuration
from cache_server.admissions import ADMISSIONS, Tally
from cache_server.artifacts import Artifacts
from cache_server.authority import Lifetimes
from cache_server.certificates import FileCertificates
from cache_server.decision import Decider, DecisionRules
from cache_server.entries import open_layered
from cache_server.entries.counts import Counts
from cache_server.namespace_stores import for_namespaces
from cache_server.own_certificates import OwnCertificates
from cache_server.serving import connect, listen, make_decider, make_judge
from cache_server.settings import OWN, PLACEHOLDER, Settings
from memopod.kube import Client
from memopod.service import configure_logs, run

_log = structlog.get_logger()
_BEAT_SECONDS = 0.25
_VALID_SECONDS = 1.5
"""How long what the first process said holds: some beats, and less than a Lease."""
_SILENT_SECONDS = 10.0
"""After so many beats without a word a process hangs, and a share of the requests with it."""
_END_SECONDS = 10.0
_AGAIN_SECONDS = 1.0


class Workers:
    """Starts `settings.processes - 1` processes, and starts one again that ended."""

    def __init__(
        self, settings: Settings, rules: DecisionRules, port: int, *, silent_seconds: float = _SILENT_SECONDS
    ) -> None:
        self._arguments = settings, rules, port
        self._context = multiprocessing.get_context("spawn")
        self._until: Any = RawArray("d", 2)
        self._running: list[tuple[BaseProcess, Connection] | None] = [None] * (settings.processes - 1)
        self._serving: set[int] = set()
        self._ending: set[int] = set()
        self._heard: dict[int, float] = {}
        self._silent_seconds = silent_seconds
        self._stopping = False

    def ready(self) -> bool:
        """Whether all of them serve."""
        return len(self._serving) == len(self._running)

    async def run(self, alive: Any, can_complete: Any) -> None:
        """Start them and keep them going; runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            while not self._stopping:
                until = time.monotonic() + _VALID_SECONDS
                self._until[0] = until if alive() else 0.0
                self._until[1] = until if can_complete() else 0.0
                for number, worker in enumerate(self._running):
                    if worker is None:
                        self._start(number)
                    elif number not in self._ending and not self._hear(number, worker[1]):
                        self._ending.add(number)
                        group.create_task(self._restart(number, worker), name=f"restart:{worker[0].name}")
                await asyncio.sleep(_BEAT_SECONDS)

    def _start(self, number: int) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_work, args=(*self._arguments, self._until, theirs), name=f"webhook-{number + 1}"
        )
        process.start()
        theirs.close()
        self._running[number] = process, ours

    def _hear(self, number: int, connection: Connection) -> bool:
        """Add what a worker counted; False if it ended, or serves no more."""
        try:
            while connection.poll():
                counted: Tally = connection.recv()
                ADMISSIONS.tally.add(counted)
                self._serving.add(number)
                self._heard[number] = time.monotonic()
        except (EOFError, OSError):
            return False
        return number not in self._serving or time.monotonic() - self._heard[number] < self._silent_seconds

    async def _restart(self, number: int, worker: tuple[BaseProcess, Connection]) -> None:
        process, connection = worker
        connection.close()
        self._serving.discard(number)
        try:
            await asyncio.to_thread(process.join, _AGAIN_SECONDS)
        finally:
            if process.exitcode is None:
                # It lives, but neither hands over what it counted nor would know when to end.
                process.kill()
        await asyncio.to_thread(process.join, _END_SECONDS)
        _log.error("a webhook process ended and is started again", status=process.exitcode)
        await asyncio.sleep(_AGAIN_SECONDS)
        self._running[number] = None
        self._ending.discard(number)

    async def stop(self) -> None:
        """Let them answer what they are asked, and end."""
        self._stopping = True
        running = [worker for worker in self._running if worker is not None]
        for process, _ in running:
            process.terminate()
        for number, (process, connection) in enumerate(running):
            await asyncio.to_thread(process.join, _END_SECONDS)
            if process.exitcode is None:
                process.kill()
            self._hear(number, connection)
            connection.close()


def _work(settings: Settings, rules: DecisionRules, port: int, until: Any, parent: Connection) -> None:
    configure_logs("cache-server", level=settings.log_level)
    sys.exit(run(lambda stop: _serve(settings, rules, port, until, parent, stop)))


async def _serve(
    settings: Settings, rules: DecisionRules, port: int, until: Any, parent: Connection, stop: asyncio.Event
) -> None:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        decider: Decider | None = None
        counts: Counts | None = None
        keeping: list[asyncio.Task[None]] = []
        certificates: FileCertificates | OwnCertificates
        if settings.strategy == PLACEHOLDER or settings.certificates == OWN:
            client = await stack.enter_async_context(
                Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-cache")
            )
        if settings.strategy == PLACEHOLDER:
            entries = await stack.enter_async_context(open_layered(settings.database, redis=settings.redis))
            artifacts = for_namespaces(Artifacts.from_settings(settings.object_store), client)
            _, decider = make_decider(settings, rules, artifacts, client, entries)
            counts = Counts(entries.sql.database)
            await connect(settings, entries.sql.database)
            keeping.append(group.create_task(counts.write_regularly(), name="counts"))
        if settings.certificates == OWN:
            certificates = OwnCertificates(client, configuration.certificate_place(settings), Lifetimes())
            await certificates.obtain()
        else:
            certificates = FileCertificates(settings.tls_cert_file, settings.tls_key_file)
        judge = make_judge(
            settings, configuration.admission_policy(settings, rules.secret), decider,
            alive=lambda: time.monotonic() < until[0], can_complete=lambda: time.monotonic() < until[1],
            count=None if counts is None else counts.add,
        )  # fmt: skip
        keeping.append(group.create_task(certificates.keep(lambda: False), name="certificates"))
        runner, _ = await listen(settings, judge, certificates.context, port)
        telling = group.create_task(_tell(parent, stop), name="tell")
        await stop.wait()
        await runner.cleanup()
        for task in (*keeping, telling):
            task.cancel()


async def _tell(parent: Connection, stop: asyncio.Event) -> None:
    """Hand over what was counted; when nobody listens any more, end."""
    try:
        while True:
            parent.send(ADMISSIONS.take())
            await asyncio.sleep(_BEAT_SECONDS)
    except OSError:
        stop.set()
    finally:
        try:
            parent.send(ADMISSIONS.take())
        except OSError:
            stop.set()
