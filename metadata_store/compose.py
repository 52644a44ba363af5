"""Calls that the core answers wrongly or not at all, made of several that it answers well.

- It cuts a list with a `max_result_size` above 100 at 101 rows and gives no token for the rest. Here such
  a list is put together from pages, up to LONGEST_LIST rows, and the rest has its token.
- Its binding lacks GetParentContextsByContexts and GetChildrenContextsByContexts; both are asked for one
  context at a time. As in the core, a context without such relatives has no entry in the answer.

Pages and relatives are each read in a transaction of its own, as a client that pages would do.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from metadata_store.failures import INVALID_ARGUMENT
from metadata_store.frames import Answer
from metadata_store.rpcs import LISTS, RELATIVES, request_of, response_of

LONGEST_LIST = 1000
"""Rows of one answer to a request with list options, whatever its `max_result_size`."""

_PAGE = 100

Call = Callable[[str, bytes], Answer]
"""One call of the core."""


def answer(call: Call, rpc: str, request: bytes) -> Answer:
    """The answer to any RPC that is served."""
    if rpc in RELATIVES:
        return _relatives(call, rpc, request)
    if rpc in LISTS:
        return _list(call, rpc, request)
    return call(rpc, request)


def _list(call: Call, rpc: str, request: bytes) -> Answer:
    try:
        message = request_of(rpc).FromString(request)
    except DecodeError:
        return call(rpc, request)  # the core says so
    wanted = message.options.max_result_size
    if wanted <= _PAGE:
        return call(rpc, request)
    left = min(wanted, LONGEST_LIST)
    whole = response_of(rpc)()
    while left:
        message.options.max_result_size = min(left, _PAGE)
        page = call(rpc, message.SerializeToString())
        if page.code != 0:
            return page
        part = response_of(rpc).FromString(page.response)
        left -= _rows(part)
        token = part.next_page_token
        whole.MergeFrom(part)
        whole.next_page_token = token
        if not token:
            whole.ClearField("next_page_token")
            break
        message.options.next_page_token = token
    return Answer(0, b"", whole.SerializeToString())


def _rows(page: Any) -> int:
    """How many nodes a page has; at least one, so that paging ends."""
    return max(1, sum(len(getattr(page, kind, ())) for kind in ("artifacts", "executions", "contexts")))


def _relatives(call: Call, rpc: str, request: bytes) -> Answer:
    single, field = RELATIVES[rpc]
    try:
        message = request_of(rpc).FromString(request)
    except DecodeError:
        return Answer(INVALID_ARGUMENT, f"the request is no {rpc}Request".encode(), b"")
    whole = response_of(rpc)()
    for context_id in dict.fromkeys(message.context_ids):
        part = call(single, request_of(single)(context_id=context_id).SerializeToString())
        if part.code != 0:
            return part
        found = response_of(single).FromString(part.response).contexts
        if found:
            getattr(whole.contexts[context_id], field).extend(found)
    return Answer(0, b"", whole.SerializeToString())
