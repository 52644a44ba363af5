import socket
import subprocess
import sys

import grpc
import pytest


@pytest.fixture(scope="module")
def store_address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "metadata_store", f"--grpc_port={port}", "--workers=2"]
    process = subprocess.Popen([*command, "--database", f"sqlite:///{folder}/metadata.db"])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(30) == 0
