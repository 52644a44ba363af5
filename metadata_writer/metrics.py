"""What the writer counts and times."""

from prometheus_client import Counter, Gauge, Histogram

RECORDED = Counter(
    "memopod_writer_steps_recorded", "Writes that brought a step up to date in the store.", ["state"]
)
UNCHANGED = Counter("memopod_writer_steps_unchanged", "Steps looked at that the store knew already.")
RETRIES = Counter("memopod_writer_retries", "Recordings that were tried again.", ["reason"])
FAILING = Gauge("memopod_writer_steps_failing", "Steps whose last recording failed; they are tried again.")
QUARANTINED = Gauge(
    "memopod_writer_steps_quarantined", "Steps that cannot be recorded; they are tried again, seldom."
)
MARKED = Counter("memopod_writer_pods_marked", "Pods that got Kubeflow's labels and annotations.")
FETCHED = Counter(
    "memopod_writer_fetches", "Objects asked of the API server since they were not kept.", ["kind"]
)
OFFLOADED = Counter("memopod_writer_outputs_offloaded", "Steps whose outputs are in Argo's own database.")
UNRESOLVED = Gauge(
    "memopod_writer_steps_unresolved", "Steps that lack an artifact, at the last round through the store."
)
EVENTS = Counter(
    "memopod_writer_openlineage_events", "OpenLineage events by what became of them.", ["outcome"]
)
for _outcome in ("sent", "dropped", "refused"):
    EVENTS.labels(outcome=_outcome)  # from zero: the first one is an increase too, which an alert sees
KEPT = Gauge("memopod_writer_kept_bytes", "Objects kept for steps that are not recorded in full.")
OLDEST = Gauge("memopod_writer_oldest_waiting_seconds", "How long the step waits that waits longest.")
QUEUE = Gauge("memopod_writer_queue_depth", "Steps that wait to be recorded.")
LAG = Histogram(
    "memopod_writer_lag_seconds",
    "From the event that showed a step to its record in the store.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
STORE_UP = Gauge("memopod_writer_store_reachable", "1 while the store answers.")
