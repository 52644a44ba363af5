"""docker-compose.yml run as processes of this machine: the same commands, environment and health checks.

Names of services become 127.0.0.1, ports free ones, volumes folders. MariaDB and Redis are Debian's, moto's
S3 server stands in for MinIO; what the entry point of MariaDB's image does at its first start is done here.
"""

import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import yaml

from memopod.sandbox import guard
from memopod.sandbox.argo import ENDPOINT
from memopod.sandbox.ports import free_ports
from memopod.sandbox.stack import PORTS
from tests.conftest import SYSTEM_TABLES, own, program, run_to_end, unprivileged

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "docker-compose.yml"
MEMOPOD = (sys.executable, "-m", "memopod.cli")
LIMIT = 90
"""Seconds for one service to become healthy, and for one command."""
_PORTS = {*(getattr(PORTS, name) for name in PORTS.__dataclass_fields__), 3306, 6379, 9000}
_SECRET_VARIABLES = ("AWS_", "MEMOPOD_", "KUBECONFIG")


def read_file():
    return yaml.safe_load(FILE.read_text())


class Stack:
    """The services of the file, started in the order that their dependencies ask for."""

    def __init__(self, folder):
        self.folder = folder
        self.file = read_file()
        self.ports = dict(zip(sorted(_PORTS), free_ports(len(_PORTS)), strict=True))
        hosts = "|".join(sorted(self.file["services"], key=len, reverse=True))
        numbers = "|".join(map(str, _PORTS))
        self._words = re.compile(
            rf"(?P<kept>{re.escape(ENDPOINT)})|(?<![\w.-])(?P<host>{hosts}):(?P<of>{numbers})"
            rf"|(?P<all>0\.0\.0\.0)|(?<![\w.])(?P<port>{numbers})(?!\w)"
        )
        self._processes = {}
        self._ending = ExitStack()

    def start(self):
        """Start all that `docker compose up` starts; each when what it depends on is as it asks."""
        waiting = {n: s for n, s in self.file["services"].items() if not s.get("profiles")}
        for name in waiting:
            self._start_with_dependencies(name)
        for name, service in waiting.items():
            if "healthcheck" in service:
                self._wait_healthy(name)

    def stop(self):
        self._ending.close()

    def memopod(self, *arguments, check=True):
        """`docker compose run --rm memopod ...`."""
        done = subprocess.run(
            [*MEMOPOD, *arguments], env=self._environment("memopod"), cwd=REPOSITORY, capture_output=True,
            text=True, timeout=LIMIT,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self):
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.stem}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def translate(self, name, text):
        """A word of a service's command, environment or check, for this machine."""
        for volume in self.file["services"][name].get("volumes", ()):
            source, target, *_ = volume.split(":")
            place = REPOSITORY / source if source.startswith(".") else self.folder / source
            if text == target or f"{target}/" in text or text.endswith(f"={target}"):
                text = text.replace(target, str(place))
                break
        return self._words.sub(self._translated, text)

    def _translated(self, word):
        if word["kept"]:
            return word["kept"]
        if word["host"]:
            return f"127.0.0.1:{self.ports[int(word['of'])]}"
        return "127.0.0.1" if word["all"] else str(self.ports[int(word["port"])])

    def _environment(self, name):
        declared = self.file["services"][name].get("environment", {})
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_SECRET_VARIABLES)}
        return {**inherited, **{k: self.translate(name, v) for k, v in declared.items()}}

    def _start_with_dependencies(self, name):
        if name in self._processes:
            return
        for needed, how in self.file["services"][name].get("depends_on", {}).items():
            self._start_with_dependencies(needed)
            if how["condition"] == "service_healthy":
                self._wait_healthy(needed)
            else:
                assert how["condition"] == "service_completed_successfully"
                assert self._processes[needed].wait(LIMIT) == 0, self.logs()
        command = self._command(name)
        log = self._ending.enter_context((self.folder / f"{name}.log").open("wb"))
        # Below the guard nothing outlives this process, however it ends.
        below = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command]
        process = subprocess.Popen(
            below, env=self._environment(name), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        self._processes[name] = process
        self._ending.callback(self._end, process)

    def _end(self, process):
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)

    def _command(self, name):
        words = [self.translate(name, word) for word in self.file["services"][name]["command"]]
        if name == "mariadb":
            return self._mariadb(words)
        if name == "redis":
            return [program("redis-server", "Redis"), *words[1:]]
        if name == "minio":
            port = str(self.ports[9000])
            return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        if name == "minio-users":
            return [sys.executable, "-c", "'moto takes any key'"]
        return [*MEMOPOD, *words]

    def _mariadb(self, words):
        binary = [
            program("mariadbd", "MariaDB", "/usr/sbin"), "--no-defaults", "--innodb-use-native-aio=0",
            f"--datadir={self.folder / 'mariadb'}", f"--socket={self.folder / 'mariadb' / 'socket'}",
        ]  # fmt: skip
        told = self._environment("mariadb")
        user, password = told["MARIADB_USER"], Path(told["MARIADB_PASSWORD_FILE"]).read_text()
        database = told["MARIADB_DATABASE"]
        (self.folder / "mariadb").mkdir()
        own(self.folder / "mariadb")
        tables = "".join((Path("/usr/share/mysql") / file).read_text() + "\n" for file in SYSTEM_TABLES)
        (scripts,) = (
            REPOSITORY / volume.split(":")[0]
            for volume in self.file["services"]["mariadb"]["volumes"]
            if ":/docker-entrypoint-initdb.d/" in volume
        )
        script = (
            "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL, @skip_auth_anonymous=1;\n"
            f"{tables}FLUSH PRIVILEGES;\nCREATE USER '{user}'@'%' IDENTIFIED BY '{password}';\n"
            f"CREATE DATABASE {database};\nGRANT ALL ON {database}.* TO '{user}'@'%';\n{scripts.read_text()}"
        )
        run_to_end([*binary, "--bootstrap"], input=script.encode())
        user = unprivileged().get("user")
        return [*binary, *words[1:], *([f"--user={user}"] if user else [])]

    def _wait_healthy(self, name):
        if name == "minio":
            check = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{self.ports[9000]}/moto-api/')"
            command = [sys.executable, "-ISc", check]
        else:
            kind, *words = (
                self.translate(name, word) for word in self.file["services"][name]["healthcheck"]["test"]
            )
            command = words if kind == "CMD" else ["sh", "-c", *words]
        program(command[0], f"{name}'s health check")
        end = time.monotonic() + LIMIT
        while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
            assert self._processes[name].poll() is None, self.logs()
            assert time.monotonic() < end, f"{name} is not healthy: {done.stderr}\n{self.logs()}"
            time.sleep(0.2)  # a check can only be asked again
