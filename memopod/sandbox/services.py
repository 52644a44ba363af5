"""The sandbox's processes: how each is started, and where it says that it is ready."""

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memopod.kube import MUTATING_WEBHOOKS
from memopod.sandbox.argo import BUCKET, ENDPOINT
from memopod.sandbox.certificates import StateFiles
from memopod.sandbox.control_plane import Files as ControlPlaneFiles
from memopod.sandbox.control_plane import find_programs
from memopod.sandbox.ports import free_ports
from memopod.steps import names

_HOST = "127.0.0.1"
CONTROLLER = "system:serviceaccount:argo:argo"
"""The user as whom the runner creates Pods, as Argo's workflow-controller does."""
_WEBHOOK_TIMEOUT = 5
"""Seconds that the API server waits for the webhook before it goes on without."""


@dataclass(frozen=True, slots=True)
class Service:
    """One process. `ready` is the URL that answers 200 once it works; `grace` the seconds that it gets
    between SIGTERM and SIGKILL.
    """

    name: str
    command: tuple[str, ...]
    ready: str
    grace: float = 10.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the services listen. All are different, so that one machine is enough."""

    api: int
    store: int
    envoy: int
    webhook: int
    kubelet_health: int
    store_health: int
    envoy_status: int
    cache_health: int
    writer_health: int
    janitor_health: int
    etcd_ready: int

    @classmethod
    def choose(cls) -> "Ports":
        """Free ports for all."""
        return cls(*free_ports(len(cls.__dataclass_fields__)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of a sandbox is: all that differs between processes of one machine and containers.

    `listen` is the address that services listen on; `api_server`, `cache_server`, `store` and `envoy` are
    the hosts where they are found. `bucket` is the URL of the artifacts' bucket. The databases are URLs
    too, or None where the services' environment has them. `cluster_only`: the others run elsewhere.
    """

    state: Path
    ports: Ports
    bucket: str
    metadata_database: str | None = None
    cache_database: str | None = None
    listen: str = _HOST
    api_server: str = _HOST
    cache_server: str = _HOST
    store: str = _HOST
    envoy: str = _HOST
    cluster_only: bool = False

    @classmethod
    def of_machine(cls, state: Path) -> "Layout":
        """All on this machine, at free ports; SQLite and folders below `state`."""
        return cls(
            state=state,
            ports=Ports.choose(),
            bucket=f"file://{state / 'buckets' / BUCKET}",
            metadata_database=f"sqlite:///{state / 'metadata.db'}",
            cache_database=f"sqlite:///{state / 'cache.db'}",
        )

    @property
    def object_store(self) -> tuple[str, str]:
        """The flag of kubelet and cache server that says where the artifacts are."""
        return "--object-store", f"{ENDPOINT}/{BUCKET}={self.bucket}"


def stages(layout: Layout) -> Sequence[Sequence[Service]]:
    """The services in the order in which they start; those of one stage start together.

    Nothing breaks if another order is taken: each waits for what it needs. This one is quick, and its
    reverse, in which they stop, loses nothing: writer and cache server end before the store, Envoy
    before the API server.
    """
    ports, listen = layout.ports, layout.listen
    files = StateFiles.below(layout.state)
    api = _service(
        "api-server",
        "memopod.sandbox.apiserver",
        *("--state", str(layout.state), "--listen-host", listen, "--listen-port", str(ports.api)),
        *("--advertise-host", layout.api_server),
        ready=f"https://{_HOST}:{ports.api}/readyz",
    )
    kubelet = _service(
        "kubelet",
        "memopod.sandbox.kubelet",
        *("--state", str(layout.state), "--kubeconfig", str(files.kubeconfigs["kubelet"])),
        *("--health-port", str(ports.kubelet_health), *layout.object_store),
        ready=_ready(ports.kubelet_health),
    )
    if layout.cluster_only:
        return ((api,), (kubelet,))
    store = _service(
        "metadata-store",
        "metadata_store",
        *("--listen-address", listen, "--grpc-port", str(ports.store)),
        *("--health-port", str(ports.store_health), "--workers", "2", *_database(layout.metadata_database)),
        ready=_ready(ports.store_health),
        grace=25.0,
    )
    envoy = _service(
        "envoy",
        "memopod.cli",
        *("envoy", "run", "--listen-address", listen, "--listen-port", str(ports.envoy)),
        *("--full-port", "0", "--status-port", str(ports.envoy_status)),
        *("--store", f"{layout.store}:{ports.store}"),
        ready=f"http://{_HOST}:{ports.envoy_status}/ready",
        grace=5.0,
    )
    cache = _service(
        "cache-server",
        "cache_server",
        *("--kubeconfig", str(files.kubeconfigs["cache-server"])),
        *("--listen-host", listen, "--listen-port", str(ports.webhook)),
        *("--health-host", listen, "--health-port", str(ports.cache_health)),
        *("--tls-cert-file", str(files.cache_server.certificate)),
        *("--tls-key-file", str(files.cache_server.key), "--seal-key-file", str(layout.state / "seal.key")),
        *(*layout.object_store, "--trusted-creators", CONTROLLER, "--lease-namespace", "memopod"),
        *_database(layout.cache_database),
        ready=_ready(ports.cache_health),
    )
    writer = _service(
        "metadata-writer",
        "metadata_writer",
        *("--kubeconfig", str(files.kubeconfigs["metadata-writer"])),
        *("--store", f"{layout.store}:{ports.store}"),
        *("--health-host", listen, "--health-port", str(ports.writer_health)),
        ready=_ready(ports.writer_health),
        grace=15.0,
    )
    janitor = _service(
        "janitor",
        "cache_server.janitor",
        *("--kubeconfig", str(files.kubeconfigs["janitor"])),
        *("--health-host", listen, "--health-port", str(ports.janitor_health)),
        ready=_ready(ports.janitor_health),
    )
    return ((api,), (store, kubelet), (envoy, cache, janitor, writer))


def _service(name: str, module: str, *arguments: str, ready: str, grace: float = 10.0) -> Service:
    return Service(name, (sys.executable, "-m", module, *arguments), ready, grace)


def _database(url: str | None) -> tuple[str, ...]:
    return () if url is None else ("--database", url)


def control_plane(state: Path, files: StateFiles, ports: Ports) -> Sequence[Sequence[Service]]:
    """Etcd and Kubernetes' API server, in the place of the sandbox's own. Raises SandboxError."""
    programs = find_programs()
    own = ControlPlaneFiles.prepare(state / "cp", files)
    etcd = Service("etcd", own.etcd(programs, ready_port=ports.etcd_ready), _ready(ports.etcd_ready))
    api = Service(
        "api-server", own.apiserver(programs, port=ports.api), f"https://{_HOST}:{ports.api}/readyz"
    )
    return ((etcd,), (api,))


def ensure_seal_key(state: Path) -> None:
    """Write the secret that seals keys, once. Raises OSError if it cannot be written."""
    path = state / "seal.key"
    if not path.exists():
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        beside.replace(path)


def webhook_configuration(port: int, ca_bundle: str, *, host: str = _HOST) -> dict[str, Any]:
    """How the API server calls the cache server: one webhook for each opt-in label.

    A selector cannot say "this label or that one". A Pod is never refused because the cache server is
    away, and never late by more than the timeout.
    """
    labels = {"cache": names.OPT_IN_LABEL, "kfp-cache": names.KFP_OPT_IN_LABEL}
    return {
        "apiVersion": MUTATING_WEBHOOKS.api_version,
        "kind": MUTATING_WEBHOOKS.kind,
        "metadata": {"name": "memopod-cache"},
        "webhooks": [
            {
                "name": f"{name}.memopod.io",
                "clientConfig": {
                    "url": f"https://{host}:{port}/mutate",
                    "caBundle": ca_bundle,
                },
                "objectSelector": {"matchLabels": {label: "true"}},
                "rules": [
                    {
                        "operations": ["CREATE"],
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["pods"],
                    }
                ],
                "admissionReviewVersions": ["v1", "v1beta1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "timeoutSeconds": _WEBHOOK_TIMEOUT,
                "reinvocationPolicy": "IfNeeded",
            }
            for name, label in labels.items()
        ],
    }


def _ready(port: int) -> str:
    return f"http://{_HOST}:{port}/readyz"
