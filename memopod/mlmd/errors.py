"""What can go wrong with a call, by gRPC code.

StoreError
├── NotFound            NOT_FOUND
├── AlreadyExists       ALREADY_EXISTS
└── StoreUnavailable    UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED, CANCELLED: asking again may help
"""

from typing import ClassVar

import grpc


class StoreError(Exception):
    """The store refused a call or did not answer. `code` is the gRPC code, `details` its message.

    The text names only the RPC and the code: the store's own message may quote property values, so it
    stays in `details` and out of logs.
    """

    codes: ClassVar[frozenset[grpc.StatusCode]] = frozenset()

    def __init__(self, rpc: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{rpc}: {code.name}")
        self.rpc = rpc
        self.code = code
        self.details = details


class NotFound(StoreError):
    """There is no such type, or a node has no context."""

    codes = frozenset({grpc.StatusCode.NOT_FOUND})


class AlreadyExists(StoreError):
    """A node of this name or external id, or an event, exists already; or a type does not fit."""

    codes = frozenset({grpc.StatusCode.ALREADY_EXISTS})


class StoreUnavailable(StoreError):
    """No answer in time, nobody there, or the call was given up: asking again may help.

    Whether a write was carried out is not known.
    """

    codes = frozenset(
        {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.CANCELLED,
        }
    )

    def __str__(self) -> str:
        # These come from the transport or from the service, never from a query: safe to show.
        return f"{self.rpc}: {self.code.name}: {self.details}"


def error(rpc: str, code: grpc.StatusCode, details: str) -> StoreError:
    """The kind of error that the code stands for."""
    kinds = (NotFound, AlreadyExists, StoreUnavailable)
    kind = next((kind for kind in kinds if code in kind.codes), StoreError)
    return kind(rpc, code, details)
