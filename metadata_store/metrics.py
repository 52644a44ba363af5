"""What the store tells Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter("metadata_store_calls_total", "Calls answered, by RPC and gRPC code.", ["rpc", "code"])
SECONDS = Histogram(
    "metadata_store_call_seconds",
    "Time from a call's arrival to its answer, waiting included, in seconds.",
    ["rpc"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
WAITING = Gauge("metadata_store_calls_waiting", "Calls that wait for a worker, by lane.", ["lane"])
REPLACED = Gauge("metadata_store_workers_replaced", "Workers that died and were replaced, by lane.", ["lane"])
