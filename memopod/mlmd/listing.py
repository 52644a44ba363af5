"""Whole lists, a page at a time."""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message

from memopod.mlmd.client import StoreClient

PAGE = 100
"""The largest page that every store honours: upstream cuts a larger one off in silence."""


async def list_all(
    client: StoreClient, rpc: str, request: Message, *, page: int = PAGE
) -> AsyncIterator[Any]:
    """Every node that a listing RPC (`GetContexts`, `GetExecutionsByContext`, ...) finds.

    `request.options` may hold a filter and an order; its size and token are set here. The request is
    not changed. Nodes that are written meanwhile may be missed. Raises StoreError, and ValueError if
    the RPC takes no list options.
    """
    if "options" not in request.DESCRIPTOR.fields_by_name:
        raise ValueError(f"{rpc} takes no list options")
    asked: Any = type(request)()
    asked.CopyFrom(request)
    asked.options.max_result_size = page
    while True:
        response = await client.call(rpc, asked)
        for node in _nodes(response):
            yield node
        token = response.next_page_token
        if not token:
            return
        asked.options.next_page_token = token


def _nodes(response: Any) -> Any:
    """The one repeated field of a listing's response."""
    field = next(field for field in response.DESCRIPTOR.fields if field.label == field.LABEL_REPEATED)
    return getattr(response, field.name)
