import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from memopod.sandbox.processes import Process

LIMIT = 20


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def written(path, count=1):
    """The numbers that a program has written into a file, once there are so many."""
    async with asyncio.timeout(LIMIT):
        while True:
            words = path.read_text().split() if path.exists() else []
            if len(words) >= count:
                return [int(word) for word in words]
            await asyncio.sleep(0.02)


async def gone(*pids):
    async with asyncio.timeout(LIMIT):
        while True:
            if not any(alive(pid) for pid in pids):
                return
            await asyncio.sleep(0.02)


async def finished(process):
    return await asyncio.wait_for(process.wait(), LIMIT)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
async def test_the_exit_status_is_the_programs(script, status):
    assert await finished(await Process.start(["sh", "-c", script])) == status


async def test_a_program_that_does_not_exist_is_named_in_the_log(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        process = await Process.start(["no-such-program"], log=log)
        assert await finished(process) == 127
    assert "cannot run 'no-such-program'" in (tmp_path / "log").read_text()


async def test_what_the_program_started_ends_with_it(tmp_path):
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! >> {pids}; setsid sh -c 'echo $$ >> {pids}; exec sleep 1000' & sleep 0.3"
    assert await finished(await Process.start(["sh", "-c", script])) == 0
    await gone(*await written(pids, 2))


async def test_sigterm_reaches_the_program(tmp_path):
    script = f"trap 'exit 5' TERM; echo $$ > {tmp_path}/up; while :; do sleep 0.05; done"
    process = await Process.start(["sh", "-c", script])
    await written(tmp_path / "up")
    assert await process.stop(LIMIT) == 5


async def test_a_program_that_does_not_listen_is_killed_after_its_grace(tmp_path):
    script = f"trap '' TERM; echo $$ > {tmp_path}/up; while :; do sleep 0.05; done"
    process = await Process.start(["sh", "-c", script])
    (pid,) = await written(tmp_path / "up")
    assert await process.stop(0.3) == 137
    assert not alive(pid)


PARENT = """
import asyncio, os, signal, sys
from memopod.sandbox.processes import Process
async def main():
    script = f"echo $$ >> {sys.argv[1]}; sleep 1000 & echo $! >> {sys.argv[1]}; wait"
    await Process.start(["sh", "-c", script])
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_a_program_and_all_below_it_end_when_their_parent_is_killed(tmp_path):
    pids = tmp_path / "pids"
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(pids))
    started = await written(pids, 2)
    parent.kill()
    await parent.wait()
    await gone(*started)


async def test_the_program_ends_when_the_guard_is_killed(tmp_path):
    process = await Process.start(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000"])
    (pid,) = await written(tmp_path / "pid")
    os.kill(process.pid, signal.SIGKILL)
    assert await finished(process) == -signal.SIGKILL
    await gone(pid)


async def test_signals_that_the_guard_handles_are_the_programs_own_again():
    script = """
import signal, sys
ignored = signal.getsignal(signal.SIGHUP) != signal.SIG_DFL
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
sys.exit(1 if ignored or blocked else 0)
"""
    assert await finished(await Process.start([sys.executable, "-c", script])) == 0
