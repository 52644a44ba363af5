"""Kubeflow's manifest names no command: the entry point of our image gets the flags of its cache server."""

import subprocess
import sys
from pathlib import Path

import pytest

from memopod.cli import command_line

MEMOPOD = str(Path(sys.executable).with_name("memopod"))
MANIFEST = [
    "--db_driver=mysql", "--db_host=mysql", "--db_port=3306", "--db_name=cachedb", "--db_user=root",
    "--db_password=", "--namespace_to_watch=kubeflow", "--listen_port=8443",
]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [MANIFEST, ["-logtostderr", "-v", "2", "-db_host=mysql"], ["--listen_port=1", *MANIFEST]]
)
def test_flags_of_kubeflows_cache_server_are_for_the_cache_server(arguments):
    assert command_line(arguments) == ["cache-server", *arguments]


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["cache-server", *MANIFEST], ["demo", "--keep"]]
)
def test_every_other_command_line_is_left_as_it_is(arguments):
    assert command_line(arguments) == arguments


def test_the_entry_point_of_the_image_starts_the_cache_server_with_them():
    # A driver that there is not ends it before it opens anything.
    arguments = [MEMOPOD, *MANIFEST[1:], "-v", "2", "--db_driver=oracle"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--db_driver: expected one of mysql" in done.stderr
