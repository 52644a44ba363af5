"""What the guard counts."""

from prometheus_client import Counter

CALLS = Counter("memopod_guard_calls", "Calls by RPC and gRPC status.", ["rpc", "code"])
WITHHELD = Counter("memopod_guard_withheld", "Nodes and events left out of answers, by RPC.", ["rpc"])
