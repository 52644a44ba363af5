"""The servers that are measured, each a process that ends with its context."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import grpc

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def store(url, *flags):
    """This store; yields (port, pid)."""
    port = free_port()
    command = [sys.executable, "-m", "metadata_store", "--grpc_port", str(port), "--database", url]
    with _process([*command, "--log-level=warning", *flags], port) as pid:
        yield port, pid


@contextmanager
def bare(constant):
    """A server that answers every call with these bytes; yields its port."""
    port = free_port()
    with tempfile.NamedTemporaryFile() as file:
        file.write(constant)
        file.flush()
        with _process([sys.executable, "-m", "benchmarks.store.bare", str(port), file.name], port):
            yield port


@contextmanager
def _process(command, port):
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            deadline = time.monotonic() + 60
            while True:
                try:
                    grpc.channel_ready_future(channel).result(0.5)
                    break
                except grpc.FutureTimeoutError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"cannot start {command}") from None
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def mariadb():
    """A MariaDB as the tests start one (it does not wait for its disk); yields URLs by database name."""
    spec = importlib.util.spec_from_file_location("tests_conftest", ROOT / "tests" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = conftest
    spec.loader.exec_module(conftest)
    with tempfile.TemporaryDirectory() as folder:

        class Folders:  # what the fixture takes from pytest
            @staticmethod
            def getbasetemp():
                return Path(folder)

        serving = conftest.mariadb.__wrapped__(Folders())
        server = next(serving)
        try:
            password = quote(server.password, safe="")
            yield lambda name: f"mysql://{server.user}:{password}@127.0.0.1:{server.port}/{name}"
        finally:
            serving.close()


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def memory_of(pid):
    """Resident megabytes of a process and its children."""
    each_of = (pid, *children(pid))
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in each_of)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
