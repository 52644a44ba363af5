"""Each service here is a process of its own: signals are for processes."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

SERVICE = """
import asyncio, sys
from memopod.service import configure_logs, run

configure_logs("service")

async def service(stop):
    print("started", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    if "hang" in sys.argv:
        await asyncio.Event().wait()
    print("stopped", flush=True)

sys.exit(run(service))
"""

LISTENER = """
import sys
from memopod.service import Health, configure_logs, run

configure_logs("service")

async def service(stop):
    await Health({}).start("127.0.0.1", int(sys.argv[1]))

sys.exit(run(service))
"""


@contextmanager
def started(*arguments):
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_service_end_in_order(number):
    with started() as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert out == "stopping\nstopped\n"
        assert process.returncode == 0
        assert number.name in err
        assert "Traceback" not in err


def test_a_second_signal_ends_the_process_at_once():
    with started("hang") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert out == ""
        assert process.returncode == 128 + signal.SIGTERM


def test_a_port_in_use_is_status_1_and_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-c", LISTENER, port], capture_output=True, text=True, timeout=60
        )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "cannot start" in ended.stderr
    assert "address already in use" in ended.stderr
