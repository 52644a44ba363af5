"""Settings of the cache server and of the janitor."""

from collections.abc import Sequence
from dataclasses import dataclass

from cache_server.upstream import UpstreamSettings
from cache_server.waiting import OFF, SCOPES
from memopod.service import setting
from memopod.steps import names

AUTO, GATE, PLACEHOLDER = "auto", "gate", "placeholder"
FILES, OWN = "files", "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class JanitorSettings:
    """What the janitor needs, and the cache server too."""

    kubeconfig: str = setting(
        "", "Path of a kubeconfig. Empty: $KUBECONFIG, ~/.kube/config, else the Pod's own account."
    )
    watch_namespace: str = setting("", "Namespace whose Pods are served; empty for all.")
    health_host: str = setting("0.0.0.0", "Address of /healthz, /readyz and /metrics.")  # noqa: S104
    health_port: int = setting(9094, "Port of /healthz, /readyz and /metrics; 0 picks a free one.")
    log_level: str = setting("info", "debug, info, warning or error.")
    claim_wait: float = setting(
        2.0, "Seconds between claiming an overdue Pod and releasing it: a write under way shows by then."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(JanitorSettings, UpstreamSettings):
    """Everything that can be set. Flags win over the environment (MEMOPOD_CACHE_...)."""

    listen_host: str = setting("0.0.0.0", "Address of the webhook.")  # noqa: S104
    listen_port: int = setting(
        8443, "Port of the webhook (HTTPS); 0 picks a free one.", aliases=["-listen_port"]
    )
    processes: int = setting(
        1,
        "Processes that answer admission requests on the port; all else is done by the first. One answers "
        "some thousand a second.",
    )
    strategy: str = setting(
        AUTO,
        "gate: hold Pods by a scheduling gate (Kubernetes 1.27 and later), and finish repeated steps without "
        "a Pod being scheduled; placeholder: swap the containers of repeated steps at admission, as "
        "Kubeflow's cache server does; auto: placeholder if --db_host or its kin is given, else gate.",
    )
    leader_election: bool | None = setting(
        None,
        "Whether replicas elect a leader by a Lease. False only for one replica in placeholder mode; by "
        "default where --db_host or its kin is given, since Kubeflow's account may not use Leases.",
    )
    lookup_timeout: float = setting(
        0.1, "Placeholder mode: seconds that looking an entry up may take at admission; then the step runs."
    )
    cache_image: str = setting(
        "ghcr.io/containerd/busybox", "Placeholder mode: image of the placeholder; it needs `echo`.",
        env=["CACHE_IMAGE"],
    )  # fmt: skip
    cache_node_restrictions: bool = setting(
        False, "Placeholder mode: whether a placeholder keeps its step's affinity and node selector.",
        env=["CACHE_NODE_RESTRICTIONS"],
    )  # fmt: skip
    tls_cert_file: str = setting(
        "/etc/webhook/certs/cert.pem", "Certificate chain of the webhook, PEM; a name without folder is in "
        "/etc/webhook/certs.",
        aliases=["--tls_cert_filename", "-tls_cert_filename"],
    )  # fmt: skip
    tls_key_file: str = setting(
        "/etc/webhook/certs/key.pem",
        "Private key of the webhook, PEM; see --tls-cert-file.",
        aliases=["--tls_key_filename", "-tls_key_filename"],
    )
    certificates: str = setting(
        FILES,
        "files: somebody else (cert-manager) puts the certificate into --tls-cert-file and renews it; own: "
        "the cache server is its own authority, keeps it in a Secret, and fills in caBundle.",
    )
    certificate_secret: str = setting(
        "memopod-cache-certificates", "--certificates=own: name of the Secret, in --lease-namespace."
    )
    certificate_names: tuple[str, ...] = setting(
        (),
        "--certificates=own: DNS names and addresses of the webhook. Empty: those of the Service "
        "cache-server in --lease-namespace.",
    )
    webhook_configuration: str = setting(
        "memopod-cache",
        "--certificates=own: the MutatingWebhookConfiguration whose caBundle is kept in step.",
    )
    client_ca: str = setting(
        "",
        "File with the authorities, PEM, of the API server's client certificate: nobody else may call the "
        "webhook then. Empty: whoever reaches it. Read at the start.",
    )
    client_names: tuple[str, ...] = setting(
        (), "Common names that a client certificate may have; empty for any. Needs --client-ca."
    )
    database: str = setting(
        "",
        "Database of entries: sqlite:///PATH, mysql://USER:PASSWORD@HOST:PORT/NAME (MariaDB too) or "
        "postgresql://USER:PASSWORD@HOST:PORT/NAME. A URL with a password belongs into the environment "
        "(MEMOPOD_CACHE_DATABASE): flags can be read by everybody on a machine.",
    )
    redis: str = setting(
        "",
        "Redis in front of the database, shared by all replicas: redis://HOST:PORT/NUMBER; empty for none. "
        "A URL with a password belongs into the environment (MEMOPOD_CACHE_REDIS).",
    )
    api_port: int | None = setting(
        None,
        "Port of the API that `memopod cache --server` uses (HTTPS); 0 picks a free one. Not set: no API.",
    )
    api_host: str = setting("0.0.0.0", "Address of the API.")  # noqa: S104
    api_token_file: str = setting(
        "",
        "File with tokens, a line each, that may do everything by the API: for one machine, and for tests.",
    )
    api_kubernetes: bool = setting(
        True,
        "Ask Kubernetes who may use the API: its own tokens, and Roles for entries.memopod.io, count there.",
    )
    retention_idle: str = setting(
        "P90D",
        "ISO 8601 duration after which an entry is deleted that was neither recorded nor used since; "
        "empty to keep all.",
    )
    retention_age: str = setting(
        "", "ISO 8601 duration after which an entry is deleted however often it is used; empty for none."
    )
    retention_number: int = setting(
        0, "Entries that a namespace keeps at most, those that were used last; 0 for no limit."
    )
    retention_interval: float = setting(3600.0, "Seconds between two looks for entries to delete.")
    seal_key_file: str = setting("", "File with the secret (32 bytes or more) that seals keys.")
    trusted_creators: tuple[str, ...] = setting(
        ("system:serviceaccount:argo:argo", "system:serviceaccount:kubeflow:argo"),
        "Users whose Pods are held: the accounts of workflow controllers.",
    )
    lease_namespace: str = setting("memopod", "Namespace of the leader's Lease.")
    lease_name: str = setting("memopod-cache-controller", "Name of the leader's Lease.")
    hold_timeout: float = setting(
        30.0, "Seconds that a Pod is held at most when nobody decides. A restart fits into it."
    )
    decision_timeout: float = setting(
        5.0, "Seconds that a decision may take, slow databases included; then the step runs."
    )
    settle_time: float = setting(
        0.5,
        "Seconds between the WorkflowTaskResult and the Pod's status: Argo's two watches are not ordered.",
    )
    late_margin: float = setting(5.0, "No reuse starts later than this many seconds before hold-until.")
    concurrency: int = setting(32, "Decisions under way at once.")
    object_store: tuple[str, ...] = setting(
        (),
        "Object stores to check outputs in, each ENDPOINT/BUCKET=URL (s3://, gs://, az://, file://). "
        "ENDPOINT/*=s3://*?endpoint=URL: any bucket there, with the credentials in the Secret that the step "
        "names, if its namespace lets this server read that.",
    )
    artifact_check: str = setting(
        "auto",
        "require: outputs must be found unchanged; best-effort: a store that cannot be asked is no "
        "miss; off; auto: require where an object store is set, else off.",
    )
    artifact_memory: float = setting(
        1.0,
        "Seconds that an output which was found unchanged is not asked about again; 0 asks each time.",
    )
    default_staleness: str = setting(
        "", "ISO 8601 duration that an entry may be old by default; empty for no limit.",
        env=["DEFAULT_CACHE_STALENESS"],
    )  # fmt: skip
    maximum_staleness: str = setting(
        "", "ISO 8601 duration that no entry may exceed; empty for no limit.",
        env=["MAXIMUM_CACHE_STALENESS"],
    )  # fmt: skip
    mutable_tag_max_staleness: str = setting(
        "", "ISO 8601 duration that an entry may be old at most where an image of the step is named by a "
        "tag, which may point elsewhere by now; empty for no limit of its own.",
    )  # fmt: skip
    audit_rate: float = setting(
        0.0,
        "Share of the hits, 0 to 1, that run all the same, to compare their outputs with the entry's.",
    )
    coalesce: str = setting(
        OFF,
        "For whom a step without entry waits instead of running: off; across-workflows: for an identical "
        f"step of another workflow that runs; everywhere: of its own too. A step's annotation "
        f"{names.COALESCE} says otherwise for itself.",
    )
    coalesce_longest: float = setting(3600.0, "Seconds after a Pod's creation when it waits no longer.")
    coalesce_most: int = setting(
        100, "Pods of a namespace that wait at most: held Pods count in quotas and in parallelism."
    )
    ignored_sidecars: tuple[str, ...] = setting(
        (), "Names of containers that are no part of a key: sidecars that a service mesh injects."
    )

    def __post_init__(self) -> None:
        _check_choice("--strategy", self.strategy, (AUTO, GATE, PLACEHOLDER))
        if not 1 <= self.processes <= 64:
            raise ValueError(f"--processes: expected 1 to 64, got {self.processes}")
        _check_choice("--certificates", self.certificates, (FILES, OWN))
        if self.client_names and not self.client_ca:
            raise ValueError("--client-names: expected --client-ca too")
        _check_choice("--artifact-check", self.artifact_check, ("auto", "require", "best-effort", "off"))
        _check_choice("--coalesce", self.coalesce, SCOPES)
        if self.retention_number < 0 or self.retention_interval <= 0:
            raise ValueError("--retention-number must not be below 0, --retention-interval must be above 0")
        if not 0 <= self.audit_rate <= 1:
            raise ValueError(f"--audit-rate: expected a number from 0 to 1, got {self.audit_rate:g}")
        if not self.hold_timeout <= 300:
            raise ValueError("--hold-timeout: expected 300 seconds at most")
        if not 0 < self.late_margin < self.hold_timeout:
            raise ValueError("--late-margin must be above 0 and below --hold-timeout")


def _check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{flag}: expected one of {', '.join(choices)}, got {value!r}")
