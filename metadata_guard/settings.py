"""The guard's settings."""

from dataclasses import dataclass

from memopod.service import setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Flags and environment of the metadata guard."""

    listen_address: str = setting(
        "127.0.0.1",
        "address to listen on, without TLS: callers' tokens come in here, so it belongs into Envoy's Pod",
    )
    grpc_port: int = setting(8081, "port of the gRPC service; 0 chooses a free one")
    store: str = setting(
        "metadata-grpc-service:8080", "HOST:PORT of the metadata store", env=["METADATA_STORE"]
    )
    kubeconfig: str = setting(
        "", "path of a kubeconfig; empty: $KUBECONFIG, ~/.kube/config, else the Pod's own account"
    )
    audiences: tuple[str, ...] = setting(
        (), "audiences of which a token must have one (default: those of the API server)"
    )
    review_seconds: float = setting(
        60.0, "seconds for which a review of a token, or of what its user may read, holds; 0 asks each time"
    )
    health_host: str = setting("0.0.0.0", "address of /healthz, /readyz and /metrics")  # noqa: S104
    health_port: int = setting(9096, "port of /healthz, /readyz and /metrics; 0 chooses a free one")
    log_level: str = setting("info", "debug, info, warning or error")
