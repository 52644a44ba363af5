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
        4, "Batches recorded at once: one is read while others are written; the store has one writer anyway."
    )
    batch: int = setting(
        100,
        "Steps of a batch at most: they share the questions to the store, those of one run a transaction.",
    )
    live_mebibytes: int = setting(
        48,
        "MiB for Pods and nodes of steps that are not recorded in full (1 - 2 KB each). Beyond it they are "
        "asked of the API server again.",
    )
    gone_mebibytes: int = setting(
        64,
        "MiB for deleted Pods and Workflows of steps that are not recorded yet, as while the store is away. "
        "Beyond it the oldest are let go, and Pods recorded from their Workflow's status.",
    )
    label_pods: str = setting(
        "auto",
        "Whether recorded Pods get the labels and annotations of Kubeflow's writer: on, off, or auto: those "
        "that Kubeflow labelled itself.",
    )
    finalizer: str = setting(
        "off",
        "on: a Pod that runs gets the finalizer memopod.io/record, so that it does not go before its step is "
        "recorded; a deleted Pod is kept for a minute at most. off: it is taken off wherever it is.",
    )
    leader_elect: str = setting(
        "auto",
        "Whether replicas agree by a Lease on who writes: on, off, or auto: on in a cluster, that is where "
        "POD_NAMESPACE is set.",
    )
    lease_namespace: str = setting("", "Namespace of the Leases; empty: $POD_NAMESPACE, else default.")
    shards: int = setting(
        1,
        "Shares of the namespaces, by their names' hashes, each with its leader; the same for all replicas.",
    )
    openlineage: str = setting(
        "",
        "URL that takes OpenLineage events by POST (http://marquez:5000/api/v1/lineage), or a file to which "
        "they are appended; empty for none.",
    )
    store_timeout: float = setting(10.0, "Seconds that one call of the store may take.")
    drain_timeout: float = setting(
        10.0, "Seconds to record what is queued after SIGTERM; what is left is found again at the next start."
    )

    def __post_init__(self) -> None:
        for name, value in (("label_pods", self.label_pods), ("leader_elect", self.leader_elect)):
            if value not in ("auto", "on", "off"):
                raise ValueError(f"{name}: expected auto, on or off, got {value!r}")
        if self.finalizer not in ("on", "off"):
            raise ValueError(f"finalizer: expected on or off, got {self.finalizer!r}")
        for name in ("concurrency", "batch", "live_mebibytes", "gone_mebibytes", "shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        host, _, port = self.store.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"store: expected HOST:PORT, got {self.store!r}")
