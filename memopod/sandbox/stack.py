"""The sandbox as containers: what docker-compose.yml starts, and the secrets that its services share."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from memopod.sandbox.argo import BUCKET
from memopod.sandbox.certificates import prepare_state
from memopod.sandbox.errors import SandboxError
from memopod.sandbox.services import Layout, Ports, ensure_seal_key

PORTS = Ports(
    api=6443,
    store=8080,
    envoy=9090,
    webhook=8443,
    kubelet_health=10248,
    store_health=8081,
    envoy_status=9901,
    cache_health=9094,
    writer_health=9095,
    janitor_health=9093,
    etcd_ready=2381,
)
"""As the services' defaults, and Kubernetes' own; all different, so that processes of one machine can be
started from the same file.
"""
_MARIADB_USER, _MARIADB_DATABASES = "memopod", {"cache": "memopod_cache", "metadata": "memopod_metadata"}
_MINIO_USER, _MINIO_READER = "memopod", "memopod-cache-server"


def stack(state: Path, *, cluster_only: bool = False) -> Layout:
    """The layout of the containers: each service's host is its name, the databases are in the environment."""
    return Layout(
        state=state,
        ports=PORTS,
        bucket=f"s3://{BUCKET}?endpoint=http://minio:9000&region=us-east-1",
        listen="0.0.0.0",  # noqa: S104 - in a container of its own
        api_server="cluster",
        cache_server="cache-server",
        store="metadata-store",
        envoy="envoy",
        cluster_only=cluster_only,
    )


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are that are not memopod's, each HOST:PORT."""

    mariadb: str
    redis: str


def prepare_stack(layout: Layout, folder: Path, servers: Servers) -> None:
    """Write the sandbox's identity files, and into `folder` the secrets that the other servers share.

    What is there already stays: the databases on other volumes know the first password. Raises
    SandboxError for a folder that cannot be written.
    """
    try:
        layout.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        prepare_state(layout.state, layout.ports.api, host=layout.api_server, hosts=(layout.cache_server,))
        ensure_seal_key(layout.state)
        _write_secrets(folder, servers)
    except OSError as error:
        raise SandboxError(f"the sandbox's folders cannot be written: {error}") from error


def _write_secrets(folder: Path, servers: Servers) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Each server has a user of its own, and only containers that mount the folder can see it.
    folder.chmod(0o755)
    mariadb, redis, minio, reader = (
        _once(folder / f"{name}-password") for name in ("mariadb", "redis", "minio", "minio-reader")
    )
    databases = {
        f"{name}-database": f"mysql://{_MARIADB_USER}:{mariadb}@{servers.mariadb}/{database}"
        for name, database in _MARIADB_DATABASES.items()
    }
    texts = {
        **databases,
        "redis.conf": f"requirepass {redis}",
        "redis-url": f"redis://:{redis}@{servers.redis}/0",
        "minio-user": _MINIO_USER,
        "minio-reader": f"{_MINIO_READER}\n{reader}\n",
        "aws-credentials": _aws_credentials(_MINIO_USER, minio),
        "cache-server-aws-credentials": _aws_credentials(_MINIO_READER, reader),
    }
    for name, text in texts.items():
        _write(folder / name, text)


def _aws_credentials(user: str, password: str) -> str:
    return f"[default]\naws_access_key_id = {user}\naws_secret_access_key = {password}\n"


def _once(path: Path) -> str:
    if not path.exists():
        _write(path, secrets.token_hex(24))
    return path.read_text()


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text)
    beside.chmod(0o644)
    beside.replace(path)
