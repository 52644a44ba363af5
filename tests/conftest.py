"""Database servers that tests start for themselves, where the programs are installed."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from memopod.sandbox.certificates import prepare_state

# Speed is measured by benchmarks: a machine that does other things, too, is no reason to fail.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Servers are started as another user, which Python does with fork: gRPC's threads then run its handlers in
# the child, and these end it now and then. Read when gRPC starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

if os.environ.get("MEMOPOD_TEST_MYSQLD"):  # the core, where tests call it themselves, logs in with a plug-in
    os.environ.setdefault("MARIADB_PLUGIN_DIR", "/usr/lib/x86_64-linux-gnu/libmariadb3/plugin")

HINT = "`make services` installs it"
CONTROL_PLANE_HINT = "`make control-plane` builds it"
USER = "memopod"
PASSWORD = "hunter2 p@ss/word"
SYSTEM_TABLES = (
    "mysql_system_tables.sql",
    "mysql_performance_tables.sql",
    "mysql_system_tables_data.sql",
)
MYSQL_ONLY = ("--innodb-redo-log-capacity=8M", "--mysqlx=OFF", "--skip-log-bin", "--performance-schema=OFF")


@dataclass
class DatabaseServer:
    """One server process in a folder of its own, on loopback, as a user without rights."""

    folder: Path
    command: list
    ready: str
    port: int
    user: str = USER
    password: str = PASSWORD
    process: subprocess.Popen | None = None

    def start(self):
        log = self.folder / "log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output, **unprivileged())
        deadline = time.monotonic() + 60
        while self.ready not in log.read_text(errors="replace"):
            assert self.process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.02)

    def hang(self, hanging):
        """Stop the server's processes, or let them go on; connections stay open."""
        number = signal.SIGSTOP if hanging else signal.SIGCONT
        pid = self.process.pid
        # PostgreSQL serves each connection by a child.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, number)
        for child in map(int, children):
            with suppress(ProcessLookupError):  # its connection was closed meanwhile
                os.kill(child, number)

    def crash(self):
        # PostgreSQL ends at once on SIGQUIT, its children too; SIGKILL would leave them.
        self.process.send_signal(signal.SIGQUIT if "postgres" in self.command[0] else signal.SIGKILL)
        self.process.wait(20)


def unprivileged():
    """Options of a process: the database servers refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


def own(folder):
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")


def program(name, what, *folders):
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, folders)]))
    if found:
        return found
    return unavailable(f"{what} is not installed here; {HINT}")


@pytest.fixture(scope="session")
def find_program():
    """`find_program(name, what)`: its path; without it the test is skipped, or fails, as for a server."""
    return program


def unavailable(message):
    """Skip, or fail where nothing may be skipped: a program is missing, as the message says."""
    if os.environ.get("CI", "").lower() == "true" or os.environ.get("MEMOPOD_REQUIRE_SERVICES") == "1":
        pytest.fail(message)
    pytest.skip(message)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def scratch(name):
    # Not below pytest's own folder, which only root may enter when it is root's.
    with tempfile.TemporaryDirectory(prefix=f"memopod-{name}-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        own(folder)
        yield folder


def prepared(tmp_path_factory, name, folder, prepare):
    """Copy a new server's data into the folder; all workers share what `prepare(folder)` makes once."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        template = shared / name
        if not template.exists():
            with scratch(name) as first:
                prepare(first / "data")
                shutil.copytree(first / "data", shared / f"{name}.part")
            (shared / f"{name}.part").rename(template)
    shutil.copytree(template, folder / "data")
    own(folder)


def run_to_end(command, **arguments):
    done = subprocess.run(command, capture_output=True, timeout=100, **unprivileged(), **arguments)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")


@contextmanager
def serving(server):
    server.start()
    try:
        yield server
    finally:
        server.crash()


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory):
    """MariaDB whose defaults are none of ours: latin1, and cutting off what does not fit. It offers TLS.

    With MEMOPOD_TEST_MYSQLD, the path of a `mysqld`, it is that MySQL, 8.4 or newer.
    """
    mysqld = os.environ.get("MEMOPOD_TEST_MYSQLD")
    binary = mysqld or program("mariadbd", "MariaDB", "/usr/sbin")
    common = [
        binary, "--no-defaults", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M",
        "--innodb-use-native-aio=0",
        *(MYSQL_ONLY if mysqld else ["--innodb-log-file-size=8M"]),
    ]  # fmt: skip
    account = f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\n"
    account += f"GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"

    def prepare(data):
        data.mkdir()
        own(data)
        if mysqld:
            (data.parent / "account.sql").write_text(account)
            own(data.parent)
            account_file = f"--init-file={data.parent / 'account.sql'}"
            run_to_end([*common, f"--datadir={data}", "--initialize-insecure", account_file])
            return
        sql = Path("/usr/share/mysql")
        script = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL, @skip_auth_anonymous=1;\n"
        script += "".join((sql / name).read_text() + "\n" for name in SYSTEM_TABLES)
        script += "FLUSH PRIVILEGES;\n"
        run_to_end([*common, f"--datadir={data}", "--bootstrap"], input=(script + account).encode())

    with scratch("mariadb") as folder:
        prepared(tmp_path_factory, "mariadb", folder, prepare)
        # For those who ask for TLS; its authority is folder/state/tls/ca.crt.
        tls = prepare_state(folder / "state", 1).cache_server
        own(folder)
        port = free_port()
        command = [
            *common, f"--datadir={folder / 'data'}", f"--socket={folder / 'socket'}",
            f"--port={port}", "--bind-address=127.0.0.1", "--character-set-server=latin1", "--sql-mode=",
            f"--pid-file={folder / 'pid'}", f"--ssl-cert={tls.certificate}", f"--ssl-key={tls.key}",
        ]  # fmt: skip
        with serving(DatabaseServer(folder, command, "ready for connections", port)) as server:
            yield server


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """PostgreSQL with passwords."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    binary = program("postgres", "PostgreSQL", *versions)
    beside = Path(binary).resolve().parent

    def prepare(data):
        secret = data.parent / "password"
        secret.write_text(PASSWORD)
        own(data.parent)
        run_to_end([
            str(beside / "initdb"), "--pgdata", str(data), "--username", USER, "--pwfile", str(secret),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        ])  # fmt: skip

    with scratch("postgresql") as folder:
        prepared(tmp_path_factory, "postgresql", folder, prepare)
        (folder / "data").chmod(0o700)
        port = free_port()
        command = [
            binary, "-D", str(folder / "data"), "-k", str(folder), "-p", str(port), "-h", "127.0.0.1",
            "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "deadlock_timeout=50ms",
        ]  # fmt: skip
        with serving(DatabaseServer(folder, command, "ready to accept connections", port)) as server:
            yield server


@pytest.fixture(scope="session")
def redis_server():
    """Redis that keeps nothing on disk but what it is told to."""
    binary = program("redis-server", "Redis")
    with scratch("redis") as folder:
        port = free_port()
        command = [
            binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
            "--appendonly", "no", "--daemonize", "no",
        ]  # fmt: skip
        with serving(DatabaseServer(folder, command, "Ready to accept connections", port)) as server:
            yield server


def pytest_collection_modifyitems(items):
    """Files whose tests wait for whole clusters or services begin first: begun last, one would end alone."""
    folders = ("deploy", "end_to_end", "compose", "real", "chaos")
    files = ("test_app.py", "test_processes.py", "test_databases.py")
    items.sort(key=lambda item: item.path.parent.name not in folders and item.path.name not in files)


def pytest_terminal_summary(terminalreporter):
    advice = {
        HINT: "`make services` installs what they need (Debian, as root)",
        CONTROL_PLANE_HINT: "`make control-plane` builds what they need (with Go; some minutes, once)",
    }
    for hint, text in advice.items():
        skipped = [r for r in terminalreporter.stats.get("skipped", []) if hint in str(r.longrepr)]
        if skipped:
            terminalreporter.section("tests that need servers were skipped", yellow=True)
            for report in skipped:
                terminalreporter.write_line(report.nodeid)
            terminalreporter.write_line(f"{len(skipped)} tests; {text}")
