import dataclasses

import pytest

from memopod.sandbox.errors import SandboxError
from memopod.sandbox.services import Ports
from memopod.sandbox.stack import PORTS, Servers, prepare_stack, stack

SERVERS = Servers("mariadb:3306", "redis:6379")


def test_secrets_are_made_once_and_agree_with_each_other(tmp_path):
    layout, folder = stack(tmp_path / "state"), tmp_path / "secrets"
    prepare_stack(layout, folder, SERVERS)
    first = {path.name: path.read_text() for path in folder.iterdir()}
    prepare_stack(layout, folder, SERVERS)
    assert {path.name: path.read_text() for path in folder.iterdir()} == first
    password = first["mariadb-password"]
    assert first["cache-database"] == f"mysql://memopod:{password}@mariadb:3306/memopod_cache"
    assert first["metadata-database"] == f"mysql://memopod:{password}@mariadb:3306/memopod_metadata"
    assert first["redis.conf"] == f"requirepass {first['redis-password']}"
    assert first["minio-password"] in first["aws-credentials"]
    user, reader = first["minio-reader"].split()
    assert user in first["cache-server-aws-credentials"]
    assert reader in first["cache-server-aws-credentials"]
    assert first["minio-password"] not in first["cache-server-aws-credentials"]
    passwords = {first[f"{name}-password"] for name in ("mariadb", "redis", "minio")} | {reader}
    assert len(passwords) == 4
    assert all(len(made) == 48 for made in passwords)


def test_folders_that_cannot_be_written_are_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SandboxError, match="cannot be written"):
        prepare_stack(stack(tmp_path / "state"), tmp_path / "file", SERVERS)


def test_no_two_services_of_the_stack_have_a_port_in_common():
    assert len(set(dataclasses.astuple(PORTS))) == len(dataclasses.fields(Ports))
