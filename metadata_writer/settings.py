"""Settings of the metadata writer."""

from dataclasses import dataclass

from memopod.service import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. Flags win over the environment (MEMOPOD_WRITER_...)."""

    kubeconfig: str = setting(
        "", "Path of a kubeconfig. Empty: $KUBECONFIG, ~/.kube/config, else the Pod's own account."
    )
    namespace: str = setting(
        "", "Namespace whose workflows are recorded; empty for all.", env=["NAMESPACE_TO_WATCH"]
    )
    store: str = setting("metadata-grpc-service:8080", "HOST:PORT of the metadata store (gRPC).")
    health_host: str = setting("0.0.0.0", "Address of /healthz, /readyz and /metrics.")  # noqa: S104
    health_port: int = setting(9095, "Port of /healthz, /readyz and /metrics; 0 picks a free one.")
    log_level: str = setting("info", "debug, info, warning or error.")
    concurrency: int = setting(
        8, "Steps recorded at once: enough to hide the store's latency, few enough for its database."
    )
    queue_limit: int = setting(
        10_000,
        "Deleted Pods that wait to be recorded. Others cost nothing: the API server still has them. "
        "Beyond it the oldest is let go, and recorded from its Workflow's status.",
    )
    store_timeout: float = setting(10.0, "Seconds that one call of the store may take.")
    drain_timeout: float = setting(
        10.0, "Seconds to record what is queued after SIGTERM; what is left is found again at the next start."
    )

    def __post_init__(self) -> None:
        for name in ("concurrency", "queue_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        host, _, port = self.store.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"store: expected HOST:PORT, got {self.store!r}")
