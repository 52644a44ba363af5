import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest

from memopod.cli.envoy import command


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(condition, *, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.05)


class EnvoyProcess:
    """A real Envoy, started by the launcher."""

    def __init__(self, folder, store, *, listen_address="127.0.0.1"):
        self.port, self.admin_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self.log = folder / "envoy.log"
        argv = command(self.port, store, self.admin_port, listen_address=listen_address)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        until(lambda: self.process.poll() is not None or self._ready())
        assert self.process.poll() is None, self.log.read_text()

    def _ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log.read_text()


@pytest.fixture(scope="session")
def metadata_store(tmp_path_factory):
    """The address of a store for the whole session."""
    folder = tmp_path_factory.mktemp("store")
    port = free_port()
    argv = [sys.executable, "-m", "metadata_store", f"--grpc_port={port}", "--workers=2"]
    process = subprocess.Popen([*argv, "--database", f"sqlite:///{folder}/metadata.db"])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="session")
def start_envoy(tmp_path_factory):
    """Starts Envoys; all are stopped at the end."""
    started = []

    def start(store, **options):
        envoy = EnvoyProcess(tmp_path_factory.mktemp("envoy"), store, **options)
        started.append(envoy)
        return envoy

    yield start
    for envoy in started:
        envoy.stop()


@pytest.fixture(scope="session")
def envoy(start_envoy, metadata_store):
    """An Envoy in front of the store."""
    return start_envoy(metadata_store)


@pytest.fixture(scope="session")
def repository():
    return Path(__file__).resolve().parents[2]
