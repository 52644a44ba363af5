"""The processes that only answer: what the first one does about one that is of no more use."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager

import pytest

from cache_server import workers
from cache_server.admissions import Tally
from cache_server.settings import Settings
from cache_server.workers import Workers


def _stay():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.1)


def closes_its_pipe(_settings, _rules, _port, _until, pipe):
    pipe.send(Tally())
    pipe.close()
    _stay()


def falls_silent(_settings, _rules, _port, _until, pipe):
    pipe.send(Tally())
    _stay()
    pipe.close()


@asynccontextmanager
async def running(worker, monkeypatch):
    """Two workers of that kind, and the task that keeps them going."""
    monkeypatch.setattr(workers, "_work", worker)
    monkeypatch.setattr(workers, "_END_SECONDS", 0.1)
    kept = Workers(Settings(processes=3), None, 0, silent_seconds=0.5)
    task = asyncio.create_task(kept.run(lambda: True, lambda: False))
    try:
        yield kept
    finally:
        await kept.stop()
        await asyncio.wait_for(task, 30)


@pytest.mark.parametrize("worker", [closes_its_pipe, falls_silent])
async def test_a_process_that_lives_but_hands_nothing_over_is_killed_and_replaced(monkeypatch, worker):
    async with running(worker, monkeypatch) as kept, asyncio.timeout(60):
        while None in kept._running:  # noqa: ASYNC110 (polls other processes)
            await asyncio.sleep(0.01)
        first = [process for process, _ in kept._running]
        beats = set()
        while not all(kept._running) or {process for process, _ in kept._running} & set(first):
            beats.add(kept._until[0])
            await asyncio.sleep(0.01)
        assert [process.exitcode for process in first] == [-signal.SIGKILL] * 2
        # The others are told all the while that the first process lives.
        assert len(beats) > 3
