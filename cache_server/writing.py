"""The write that decides: a WorkflowTaskResult of memopod's, which is the point of no return.

Whether it was written must be known before anything else is done with the Pod. Where no answer came it is
asked for; where nobody answers that either, the Pod is left to the next look at it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from memopod.kube import TASK_RESULTS, ApiError, Client, NotFound

_log = structlog.get_logger()
CALL_SECONDS = 1.0
"""Deadline of the write and of each question about it: a leader gives up 1 s before another may take
over, so that what it sent has been answered or cut off by then."""
_TRYING_SECONDS = 2.0
"""How long a write without answer is tried again. With the time below a decision's five seconds."""
_IN_FLIGHT_SECONDS = 2.0
"""After that much time what was sent is there, or never will be; a claim waits as long."""
_PAUSE = 0.5
_REFUSALS = frozenset({400, 401, 403, 404, 405, 406, 413, 415, 422})
"""What says for certain that nothing was written, nor will be. Any other error is no answer: the object
may be there (409) or created in a moment (429), or a proxy gave up waiting for that (408, 5xx)."""
_TOO_LARGE = ("request is too large", "larger than max")
"""What etcd, and the API server's own client of it, say of an object that is too large; that is a 500."""


class NotWritten(Exception):
    """There is no WorkflowTaskResult of ours."""


class ResultRefused(NotWritten):
    """The API server does not accept it, or failed for too long: it is not there, and will not be."""


class Abandoned(NotWritten):
    """It is no longer ours to write, or nobody could be asked: the next look, a new leader or a sweeper
    decides.
    """


class Overtaken(NotWritten):
    """The Pod has changed since it was decided for: it is `now` that, or is held no more (None)."""

    def __init__(self, now: Mapping[str, Any] | None) -> None:
        super().__init__("the Pod has changed")
        self.now = now


async def write_result(
    client: Client, wanted: Mapping[str, Any], *, obstacle: Callable[[], Awaitable[NotWritten | None]]
) -> Mapping[str, Any]:
    """Create the WorkflowTaskResult; the one that is there in the end is returned, be it another's.

    `obstacle()` is asked before each try, and says what forbids it. Raises NotWritten.
    """
    end = asyncio.get_running_loop().time() + _TRYING_SECONDS
    namespace, unanswered = wanted["metadata"]["namespace"], False
    while True:
        problem = await obstacle()
        if problem is None:
            try:
                return await client.create(TASK_RESULTS, wanted, namespace=namespace, timeout=CALL_SECONDS)
            except ApiError as error:
                refused = _is_refusal(error)
                unanswered = unanswered or not refused
                if refused or asyncio.get_running_loop().time() > end:
                    problem = ResultRefused(str(error))
                else:
                    _log.info("is the WorkflowTaskResult there?", cause=error.reason)
        if problem is not None:
            break
        found = await _find(client, wanted)
        if found is not None:
            return found
        await asyncio.sleep(_PAUSE)
    if unanswered:
        await asyncio.sleep(_IN_FLIGHT_SECONDS)
        found = await _find(client, wanted, surely=True)
        if found is not None:
            return found
    raise problem


def _is_refusal(error: ApiError) -> bool:
    if error.status >= 500:
        return any(said in str(error) for said in _TOO_LARGE)
    return error.status in _REFUSALS


async def _find(
    client: Client, wanted: Mapping[str, Any], *, surely: bool = False
) -> Mapping[str, Any] | None:
    """The WorkflowTaskResult in its place; None if there is none or, unless `surely`, if nobody says so."""
    metadata = wanted["metadata"]
    try:
        return await client.get(
            TASK_RESULTS, metadata["name"], namespace=metadata["namespace"], timeout=CALL_SECONDS
        )
    except NotFound:
        return None
    except ApiError as error:
        if surely:
            raise Abandoned(str(error)) from error
        return None
