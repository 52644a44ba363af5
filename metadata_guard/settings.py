"""The guard's settings."""

import ipaddress
from dataclasses import dataclass

from memopod.service import ServesTls, SpeaksTlsToStore, check_tls_to, setting


@dataclass(frozen=True, kw_only=True)
class Settings(ServesTls, SpeaksTlsToStore):
    """Flags and environment of the metadata guard."""

    listen_address: str = setting(
        "127.0.0.1",
        "address to listen on: callers' tokens come in here, so without --tls-certificate only the machine's "
        "or Pod's own, beside Envoy",
    )
    grpc_port: int = setting(8081, "port of the gRPC service; 0 chooses a free one")
    store: str = setting(
        "metadata-grpc-replicas:8080",
        "HOST:PORT of the metadata store. Calls go to every address of the name in turn: a headless Service",
        env=["METADATA_STORE"],
    )
    inherit: tuple[str, ...] = setting(
        (),
        "types of contexts whose namespace those members have that name none themselves; system.PipelineRun "
        "for Kubeflow v2, whose run's root names none (default: none, such members are withheld)",
    )
    concurrency: int = setting(
        32, "calls that read the store at once; eight times as many wait, and more are refused"
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

    def __post_init__(self) -> None:
        self.check_tls()
        check_tls_to("store", self)
        if not self.tls_certificate and not _loopback(self.listen_address):
            raise ValueError(
                f"--listen-address {self.listen_address}: expected --tls-certificate and --tls-key with it, "
                "since callers' tokens would cross the network in clear; or 127.0.0.1, beside Envoy"
            )
        if self.concurrency < 1:
            raise ValueError(f"--concurrency: expected at least 1, got {self.concurrency}")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
