"""Settings of the kubelet."""

from dataclasses import dataclass
from pathlib import Path

from memopod.service import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Flags `--state`, `--kubeconfig`, ..., or MEMOPOD_KUBELET_STATE and so on."""

    state: str = setting("", "folder of the sandbox; Pods run below its folder pods")
    kubeconfig: str = setting("", "kubeconfig of the user system:node:sandbox")
    object_store: tuple[str, ...] = setting(
        (),
        "where buckets are, each ENDPOINT/BUCKET=URL, as the cache server's setting of this name; a bucket "
        "in S3 is made if it is not there. Without: folders below the state folder's folder buckets",
    )
    max_running: int = setting(8, "Pods that run at once; further ones wait, Pending")
    health_port: int = setting(0, "port of /healthz and /readyz on 127.0.0.1; 0 chooses a free one")
    log_level: str = setting("info", "debug, info, warning or error")

    def __post_init__(self) -> None:
        """Raises ValueError for a missing folder or kubeconfig, and for no Pods at once."""
        if not self.state or not self.kubeconfig:
            raise ValueError("--state and --kubeconfig are needed")
        if self.max_running < 1:
            raise ValueError(f"--max-running: expected at least 1, got {self.max_running}")

    @property
    def pods(self) -> Path:
        """Folder of the Pods' folders."""
        return Path(self.state).resolve() / "pods"

    @property
    def buckets(self) -> Path:
        """Folder of the buckets."""
        return Path(self.state).resolve() / "buckets"
