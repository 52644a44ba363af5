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
    """Where the services listen, all on 127.0.0.1."""

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


def stages(state: Path, files: StateFiles, ports: Ports) -> Sequence[Sequence[Service]]:
    """The services in the order in which they start; those of one stage start together.

    Nothing breaks if another order is taken: each waits for what it needs. This one is quick, and its
    reverse, in which they stop, loses nothing: writer and cache server end before the store, Envoy
    before the API server.
    """
    python = sys.executable
    database = state / "metadata.db"
    api = Service(
        "api-server",
        (python, "-m", "memopod.sandbox.apiserver", "--state", str(state), "--listen-port", str(ports.api)),
        f"https://{_HOST}:{ports.api}/readyz",
    )
    store = Service(
        "metadata-store",
        (
            *(python, "-m", "metadata_store", "--listen_address", _HOST, f"--grpc_port={ports.store}"),
            *("--database", f"sqlite:///{database}", "--health-port", str(ports.store_health)),
        ),
        _ready(ports.store_health),
        grace=25.0,
    )
    kubelet = Service(
        "kubelet",
        (
            *(python, "-m", "memopod.sandbox.kubelet", "--state", str(state)),
            *("--kubeconfig", str(files.kubeconfigs["kubelet"]), "--health-port", str(ports.kubelet_health)),
        ),
        _ready(ports.kubelet_health),
    )
    envoy = Service(
        "envoy",
        (
            *(python, "-m", "memopod.cli", "envoy", "run", "--listen-address", _HOST),
            *("--listen-port", str(ports.envoy), "--full-port", "0"),
            *("--status-port", str(ports.envoy_status), "--store", f"{_HOST}:{ports.store}"),
        ),
        f"http://{_HOST}:{ports.envoy_status}/ready",
        grace=5.0,
    )
    cache = Service(
        "cache-server",
        (
            *(python, "-m", "cache_server", "--kubeconfig", str(files.kubeconfigs["cache-server"])),
            *("--listen-host", _HOST, "--listen-port", str(ports.webhook)),
            *("--health-host", _HOST, "--health-port", str(ports.cache_health)),
            *("--tls-cert-file", str(files.cache_server.certificate)),
            *("--tls-key-file", str(files.cache_server.key)),
            *("--database", f"sqlite:///{state / 'cache.db'}", "--seal-key-file", str(state / "seal.key")),
            *("--object-store", f"{ENDPOINT}/{BUCKET}=file://{state / 'buckets' / BUCKET}"),
            *("--trusted-creators", CONTROLLER, "--lease-namespace", "memopod"),
        ),
        _ready(ports.cache_health),
    )
    writer = Service(
        "metadata-writer",
        (
            *(python, "-m", "metadata_writer", "--kubeconfig", str(files.kubeconfigs["metadata-writer"])),
            *("--store", f"{_HOST}:{ports.store}"),
            *("--health-host", _HOST, "--health-port", str(ports.writer_health)),
        ),
        _ready(ports.writer_health),
        grace=15.0,
    )
    janitor = Service(
        "janitor",
        (
            *(python, "-m", "cache_server.janitor", "--kubeconfig", str(files.kubeconfigs["janitor"])),
            *("--health-host", _HOST, "--health-port", str(ports.janitor_health)),
        ),
        _ready(ports.janitor_health),
    )
    return ((api,), (store, kubelet), (envoy, cache, janitor, writer))


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


def webhook_configuration(port: int, ca_bundle: str) -> dict[str, Any]:
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
                    "url": f"https://{_HOST}:{port}/mutate",
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
