"""What the guard counts: never what it withheld, which whoever may read metrics could watch."""

from prometheus_client import Counter

CALLS = Counter("memopod_guard_calls", "Calls by RPC and gRPC status.", ["rpc", "code"])
