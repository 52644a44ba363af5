"""Metadata stores that tests start for themselves: processes over SQLite files of their own."""

import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import grpc
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class StoreProcess:
    """`python -m metadata_store` over `folder/metadata.db`, read back through the official client."""

    def __init__(self, folder, workers=1):
        self.workers = workers
        self.port, self.health_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.database = folder / "metadata.db"
        self.log = folder / "store.log"
        self.process = None
        self._new = folder / "new.db"

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "metadata_store", f"--grpc_port={self.port}",
                    "--database", f"sqlite:///{self.database}", "--health-port", str(self.health_port),
                    f"--workers={self.workers}",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        with grpc.insecure_channel(self.address) as channel:
            ready = grpc.channel_ready_future(channel)
            deadline = time.monotonic() + 60
            while True:
                try:
                    ready.result(timeout=0.5)
                    break
                except grpc.FutureTimeoutError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        self.kill()
                        raise AssertionError(f"the store did not start:\n{self.log.read_text()}") from None
        if not self._new.exists():
            with closing(sqlite3.connect(self.database)) as connection:
                connection.execute("VACUUM INTO ?", (str(self._new),))

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def wipe(self):
        for file in self.database.parent.glob("metadata.db*"):
            file.unlink()

    def empty(self):
        """Bring it back to what a new store holds; begins it again if a test has ended it."""
        if self.process is None:
            self.start()
        # With one worker, what a killed client had asked for is done before this is.
        self.client.put_context_type(mlmd.ContextType(name="last"))
        with closing(sqlite3.connect(self.database, isolation_level=None, timeout=30)) as connection:
            connection.execute("ATTACH ? AS new", (str(self._new),))
            connection.execute("BEGIN IMMEDIATE")
            tables = connection.execute("SELECT name FROM new.sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                connection.execute(f"DELETE FROM main.{table}")
                connection.execute(f"INSERT INTO main.{table} SELECT * FROM new.{table}")
            connection.execute("COMMIT")

    @property
    def client(self):
        return MetadataStore(mlmd.MetadataStoreClientConfig(host="127.0.0.1", port=self.port))
