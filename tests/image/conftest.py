"""The image, built and run for real: by the Docker daemon that is there, else by one of the test's own.

No base image can be had where only package registries are reached, so the base is Debian's Python 3.11
from `debootstrap`; the Dockerfile is the one that everybody uses.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from tests.conftest import program, unavailable

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = "python3,python3-venv,ca-certificates"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def _until(condition, *, seconds=60.0, process=None, log=None):
    end = time.monotonic() + seconds
    while not (result := condition()):
        text = log.read_text(errors="replace") if log else ""
        assert process is None or process.poll() is None, text
        assert time.monotonic() < end, f"not so within {seconds} s\n{text}"
        time.sleep(0.1)
    return result


@pytest.fixture(scope="session")
def until():
    """Wait for a condition: `until(condition)`; what it returns."""
    return _until


@pytest.fixture(scope="session")
def free_port():
    def choose():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]

    return choose


class Docker:
    """The command line, against one daemon."""

    def __init__(self, program, environment):
        self.program = program
        self.environment = environment

    def __call__(self, *arguments, check=True, **options):
        done = subprocess.run(
            [self.program, *arguments], env=self.environment, capture_output=True, text=True, **options
        )
        assert not check or done.returncode == 0, f"docker {arguments}:\n{done.stdout}\n{done.stderr}"
        return done

    def answers(self):
        return self("info", check=False).returncode == 0


@pytest.fixture(scope="session")
def docker():
    """A Docker that answers."""
    there = Docker(program("docker", "Docker"), dict(os.environ))
    if there.answers():
        yield there
        return
    # Not below pytest's folder: what the daemon mounts there could not be removed by later runs.
    folder = Path(tempfile.mkdtemp(prefix="memopod-docker-"))
    endpoint = f"unix://{folder}/docker.sock"
    log = folder / "log"
    # Neither bridge nor packet filter: it needs no more rights than a container's root has.
    command = [
        program("dockerd", "Docker", "/usr/sbin"), "--host", endpoint, "--data-root", str(folder / "data"),
        "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid"),
        "--bridge=none", "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip
    with log.open("wb") as output:
        daemon = subprocess.Popen(command, stdout=output, stderr=output)
    own = Docker(there.program, {**os.environ, "DOCKER_HOST": endpoint})
    try:
        _until(lambda: own.answers() or daemon.poll() is not None)
        if daemon.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            unavailable(f"no Docker daemon can run here: it needs root, mounts and cgroups. It said: {last}")
        yield own
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(60)
        subprocess.run(["umount", str(folder / "exec" / "netns" / "default")], capture_output=True)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def base(docker, tmp_path_factory):
    """The name of a base image: Debian's Python 3.11, which trusts what this machine trusts."""
    folder = tmp_path_factory.mktemp("base") / "root"
    make = program("debootstrap", "debootstrap", "/usr/sbin")
    command = [make, "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    shutil.copy(CERTIFICATES, f"{folder}{CERTIFICATES}")
    name = f"memopod-base:{uuid.uuid4().hex[:8]}"
    with subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE) as tar:
        docker("import", "--change", f"ENV PIP_CERT={CERTIFICATES}", "-", name, stdin=tar.stdout)
    shutil.rmtree(folder)
    yield name
    docker("rmi", "--force", name)


@pytest.fixture(scope="session")
def image(docker, base):
    """The name of memopod's image, built from this checkout."""
    name = f"memopod:{uuid.uuid4().hex[:8]}"
    docker(
        *("build", "--network=host", "--build-arg", f"BASE={base}", "--build-arg", "VERSION=test"),
        *("--file", "deploy/image/Dockerfile", "--tag", name, "."),
        cwd=REPOSITORY,
    )
    yield name
    docker("rmi", "--force", name)


@pytest.fixture
def run(docker, image):
    """Start the image as a cluster would: user 1000, nothing writable but the volumes, no capability."""
    started = []

    def start(*arguments, volumes=(), environment=()):
        name = f"memopod-{uuid.uuid4().hex[:8]}"
        mounts = [word for volume in volumes for word in ("--volume", volume)]
        variables = [word for variable in environment for word in ("--env", variable)]
        docker(
            *("run", "--detach", "--name", name, "--network=host", "--read-only", "--tmpfs=/tmp"),
            *("--cap-drop=ALL", "--security-opt=no-new-privileges", *mounts, *variables, image, *arguments),
        )
        started.append(name)
        return name

    yield start
    for name in started:
        docker("rm", "--force", name)


@pytest.fixture
def stopped_in_order(docker):
    """Stop a container as a cluster does, and see it end by itself, with 0."""

    def stop(name):
        docker("stop", "--time=40", name)
        state = docker("inspect", "--format={{.State.ExitCode}}", name).stdout.strip()
        assert state == "0", docker("logs", name).stderr

    return stop
