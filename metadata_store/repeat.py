"""Whether a write whose outcome nobody knows may be asked for again.

A worker that dies, or a connection that breaks, may take the answer of a committed transaction along.
Most writes can then simply be repeated: types and associations are put once however often they are put,
a node with an id is written over, and a second node with the same name or external id is refused with
ALREADY_EXISTS. Only a new node without name and external id would be there twice.
"""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from metadata_store.failures import ABORTED, UNKNOWN
from metadata_store.frames import Answer
from metadata_store.rpcs import request_of


def repeatable(rpc: str, request: bytes) -> bool:
    """Whether carrying out the call twice leaves the database as once would."""
    try:
        message = request_of(rpc).FromString(request)
    except DecodeError:
        return True  # the core refuses it each time
    return all(node.id or node.name or node.external_id for node in _nodes(message))


def outcome_unknown(rpc: str, request: bytes, what: str) -> Answer:
    """The answer to a write that was cut off by `what`.

    ABORTED, which clients repeat, only if a repetition can do no harm; else UNKNOWN, which they report.
    """
    text = f"{what} during this {rpc}; it may or may not have been carried out"
    if repeatable(rpc, request):
        return Answer(ABORTED, f"{text}, and can be asked for again".encode(), b"")
    advice = "it holds new nodes without name and external id, so look before you ask again"
    return Answer(UNKNOWN, f"{text}: {advice}".encode(), b"")


def _nodes(message: Any) -> Iterable[Any]:
    """Artifacts and executions of a Put request; contexts always have a name."""
    for field in ("artifacts", "executions"):
        yield from getattr(message, field, ())
    if hasattr(message, "artifact_event_pairs"):
        yield message.execution
        yield from (pair.artifact for pair in message.artifact_event_pairs if pair.HasField("artifact"))
