"""Where etcd and kube-apiserver are, and how they are started."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from memopod.sandbox.certificates import StateFiles
from memopod.sandbox.errors import SandboxError

HINT = "`make control-plane` builds it (needs Go)"
_SOCKET_PATH = 100
"""Bytes that the path of a Unix socket may have (Linux: 107), less some room."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The two programs."""

    etcd: Path
    apiserver: Path


def find_programs(environ: Mapping[str, str] = os.environ) -> Programs:
    """The programs in $MEMOPOD_CONTROL_PLANE, or the last that were built. Raises SandboxError."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    given = environ.get("MEMOPOD_CONTROL_PLANE")
    folder = Path(given) if given else cache / "memopod" / "control-plane" / "current"
    programs = Programs(folder / "etcd", folder / "kube-apiserver")
    for program in (programs.etcd, programs.apiserver):
        if not os.access(program, os.X_OK):
            raise SandboxError(f"no control plane here ({program} is no program); {HINT}")
    return programs


@dataclass(frozen=True, slots=True)
class Files:
    """What the programs read, in a folder of a sandbox: made by `prepare`."""

    folder: Path
    state: StateFiles

    @classmethod
    def prepare(cls, folder: Path, state: StateFiles) -> "Files":
        """Write what is missing. Raises OSError, and SandboxError for a path that is too long."""
        files = cls(folder, state)
        if len(os.fsencode(files._socket)) > _SOCKET_PATH:
            raise SandboxError(f"state folder {folder}: expected a path of at most 80 characters")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not files._account_key.exists():
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            encoded = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            _write(files._account_key, encoded)
        _write(files._tokens, _token_lines(state.tokens))
        return files

    @property
    def _socket(self) -> Path:
        return self.folder / "etcd.sock"

    @property
    def _account_key(self) -> Path:
        return self.folder / "accounts.key"

    @property
    def _tokens(self) -> Path:
        return self.folder / "tokens.csv"

    def etcd(self, programs: Programs, *, ready_port: int) -> tuple[str, ...]:
        """The command of etcd. It listens on a socket in the folder, which only its owner can enter.

        `http://127.0.0.1:<ready_port>/readyz` says whether it is ready, and nothing else.
        """
        nowhere = "http://localhost:1"
        return (
            str(programs.etcd),
            *("--name", "sandbox", "--data-dir", str(self.folder / "etcd")),
            *("--listen-client-urls", f"unix://{self._socket}", "--advertise-client-urls", nowhere),
            *("--listen-peer-urls", f"unix://{self.folder / 'peer.sock'}"),
            *("--initial-advertise-peer-urls", nowhere, "--initial-cluster", f"sandbox={nowhere}"),
            *("--listen-metrics-urls", f"http://127.0.0.1:{ready_port}"),
            # A sandbox need not survive a crash of the machine.
            *("--unsafe-no-fsync", "--log-level", "error"),
        )

    def apiserver(self, programs: Programs, *, port: int) -> tuple[str, ...]:
        """The command of the API server: RBAC, service accounts, and the sandbox's users by their tokens."""
        issuer = "https://kubernetes.default.svc.cluster.local"
        return (
            str(programs.apiserver),
            *("--etcd-servers", f"unix://{self._socket}"),
            *("--bind-address", "127.0.0.1", "--secure-port", str(port)),
            *("--tls-cert-file", str(self.state.apiserver.certificate)),
            *("--tls-private-key-file", str(self.state.apiserver.key)),
            *("--cert-dir", str(self.folder), "--token-auth-file", str(self._tokens)),
            *("--service-account-issuer", issuer, "--api-audiences", issuer),
            *("--service-account-key-file", str(self._account_key)),
            *("--service-account-signing-key-file", str(self._account_key)),
            *("--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24"),
            *("--endpoint-reconciler-type", "none", "--profiling=false", "--v", "0"),
            # No kube-proxy here: a webhook's Service is reached at its endpoints.
            "--enable-aggregator-routing",
        )


def _token_lines(tokens: Path) -> bytes:
    """The sandbox's tokens as Kubernetes' static token file: token, user, uid, "group,group"."""
    users = msgspec.json.decode(tokens.read_bytes())
    text = io.StringIO()
    lines = csv.writer(text)
    for token, user in users.items():
        lines.writerow([token, user["username"], user["username"], ",".join(user["groups"])])
    return text.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
