"""Many writers of one key: one row is left, and it is the newest's."""

import asyncio
import pickle
import random
import subprocess
import sys
from datetime import timedelta

from cache_server.entries import open_entries

WRITER = """
import asyncio, pickle, sys
from cache_server.entries import open_entries

async def write():
    async with open_entries(sys.argv[1], call_timeout=30) as entries:
        for entry in pickle.load(sys.stdin.buffer):
            await entries.put(entry)

asyncio.run(write())
"""


def versions(make_entry, count):
    first = make_entry()
    made = [
        make_entry(finished_at=first.finished_at + timedelta(microseconds=n), pod_name=f"run-1-{n}")
        for n in range(count)
    ]
    newest = made[-1]
    random.Random(1).shuffle(made)
    return made, newest


async def test_twenty_writers_of_one_process_leave_the_newest(url, database, make_entry):
    made, newest = versions(make_entry, 20)
    async with open_entries(url, call_timeout=30) as entries:
        results = await asyncio.gather(*(entries.put(entry) for entry in made))
        assert results[made.index(newest)] is True
        assert await entries.find("pipelines", newest.key) == newest
    assert database.query("SELECT id FROM entries") == [(newest.id,)]


def test_writers_of_several_processes_that_start_with_no_database_leave_the_newest(url, database, make_entry):
    made, newest = versions(make_entry, 20)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    try:
        for n, writer in enumerate(writers):
            writer.stdin.write(pickle.dumps(made[n::4]))
            writer.stdin.close()
            writer.stdin = None
        for writer in writers:
            _, errors = writer.communicate(timeout=60)
            assert (writer.returncode, errors) == (0, b"")
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert database.query("SELECT id FROM entries") == [(newest.id,)]
