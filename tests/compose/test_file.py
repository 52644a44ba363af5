"""docker-compose.yml: both generations of docker compose take it, and it starts what `sandbox up` does."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from memopod.sandbox.services import stages
from memopod.sandbox.stack import stack
from tests.compose.processes import FILE, REPOSITORY, read_file
from tests.conftest import CONTROL_PLANE_HINT, program, unavailable

STATE = Path("/var/lib/memopod")
SERVERS = {"mariadb", "redis", "minio", "minio-users"}
ONCE = {"init", "minio-users"}
"""Services that end when they have made what the others need."""


@pytest.fixture(scope="module")
def services():
    return read_file()["services"]


@pytest.fixture(scope="module")
def started(services):
    return {name: service for name, service in services.items() if not service.get("profiles")}


@pytest.mark.timeout(400)
def test_the_specifications_own_loader_takes_it():
    folder = REPOSITORY / "tools" / "compose"
    done = subprocess.run(
        [go(), "run", "-mod=readonly", ".", str(FILE)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"].keys() == read_file()["services"].keys()


def go():
    from shutil import which

    return which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin") or unavailable(
        f"Go is not installed here, with which {CONTROL_PLANE_HINT}"
    )


def test_docker_compose_1_29_takes_it():
    command = [program("docker-compose", "docker-compose"), "--file", str(FILE), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_services_start_as_those_of_sandbox_up_do(services):
    for service in (s for stage in stages(stack(STATE)) for s in stage):
        if service.name in {"api-server", "kubelet"}:
            continue  # both are started by the container `cluster`
        ours = [word for word in service.command[3:] if word not in ("envoy", "run")]
        command = services[service.name]["command"]
        assert command[2 if service.name == "envoy" else 1 :] == ours


def test_cluster_and_init_are_given_the_addresses_that_the_layout_has(services):
    layout = stack(STATE)
    said = {word for name in ("init", "cluster") for word in services[name]["command"]}
    for flag, expected in {
        "--api-server": f"{layout.api_server}:{layout.ports.api}",
        "--cache-server": f"{layout.cache_server}:{layout.ports.webhook}",
        "--store": f"{layout.store}:{layout.ports.store}",
        "--envoy": f"{layout.envoy}:{layout.ports.envoy}",
        "--bucket": layout.bucket,
        "--kubelet-health-port": str(layout.ports.kubelet_health),
    }.items():
        assert f"{flag}={expected}" in said


def test_no_secret_is_in_the_file(services):
    for service in services.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|DATABASE", variable):
                assert variable.endswith(("_FILE", "_RANDOM_ROOT_PASSWORD", "MARIADB_DATABASE")), variable
                assert not variable.endswith("_FILE") or value.startswith("/var/lib/memopod-secrets/")
    assert not re.search(r"://[^/\s]*:[^/\s]*@", FILE.read_text())


def test_what_runs_on_is_checked_and_depended_on_by_its_health(started):
    for name, service in started.items():
        assert ("healthcheck" in service) == (name not in ONCE), name
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in ONCE else "service_healthy"
            assert how == {"condition": expected}


def test_the_cache_server_has_a_key_that_reads_artifacts_and_nothing_else(services):
    used = {
        name: service["environment"]["AWS_SHARED_CREDENTIALS_FILE"]
        for name, service in services.items()
        if "AWS_SHARED_CREDENTIALS_FILE" in service.get("environment", {})
    }
    assert used.keys() == {"cluster", "cache-server"}
    assert len(set(used.values())) == 2
    policy = json.loads((REPOSITORY / "deploy" / "object-store" / "read-artifacts.json").read_text())
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert actions == {"s3:GetObject", "s3:ListBucket"}


def test_what_is_kept_is_kept_in_named_volumes(services):
    named = read_file()["volumes"].keys()
    for service in services.values():
        for volume in service.get("volumes", ()):
            source, _, *mode = volume.split(":")
            assert source in named or mode == ["ro"], volume


def test_memopods_containers_may_do_nothing_that_they_need_not(services):
    for name in services.keys() - SERVERS:
        service = services[name]
        assert (service["user"], service["read_only"], service["cap_drop"]) == ("1000:0", True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_only_this_machine_reaches_the_published_ports(services):
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
