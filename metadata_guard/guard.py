"""One call: who asks, what the store says, and what of it the caller gets."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from memopod.kube import ApiError
from metadata_guard import ownership
from metadata_guard.answers import LIMITED, Rpc
from metadata_guard.ownership import Owners
from metadata_guard.reviews import Caller, Reviews, Unauthenticated
from metadata_guard.store import SECONDS, Store, StoreError

_EMPTY_PAGES: Final = 20
"""Pages in a row of which all was withheld that are passed over in one call."""
_WAITING: Final = 8
"""Calls that wait for each place."""
_log = structlog.get_logger()


class Refused(Exception):
    """The call ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Guard:
    """Answers the reads of callers within the namespaces that they may read.

    `inherit`: see `ownership`. At most `concurrency` calls read the store at once.
    """

    def __init__(
        self, reviews: Reviews, store: Store, *, inherit: Collection[str] = (), concurrency: int = 32
    ) -> None:
        self._reviews = reviews
        self._store = store
        self._inherit = frozenset(inherit)
        self._places = asyncio.Semaphore(concurrency)
        self._waiting, self._most_waiting = 0, _WAITING * concurrency

    async def call(
        self, name: str, payload: bytes, authorization: str | None, seconds: float | None
    ) -> bytes:
        """The answer to an RPC as its caller may have it, within so many seconds.

        Raises Refused, whatever fails.
        """
        limit = SECONDS if seconds is None else min(seconds, SECONDS)
        end = asyncio.get_running_loop().time() + limit
        try:
            async with asyncio.timeout_at(end):
                caller = await self._reviews.caller(_token(authorization))
                rpc = _limited(name)
                request = _parsed(rpc, payload)
                async with self._place():
                    return await self._read(rpc, request, caller, self._store.until(end))
        except Refused:
            raise
        except TimeoutError:
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, f"{name} did not end in time") from None
        except Unauthenticated as error:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, str(error)) from None
        except ApiError as error:
            _log.warning("the API server does not review", error=str(error))
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, "the API server does not say who may read what"
            ) from None
        except StoreError as error:
            raise Refused(error.code, error.message) from None
        except Exception as error:  # noqa: BLE001 (whatever it is, nothing may be answered)
            # Not its text, which may quote what is stored.
            _log.error("a call failed", rpc=name, error=type(error).__name__)
            raise Refused(grpc.StatusCode.INTERNAL, f"the guard failed at {name}") from None

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._places.locked() and self._waiting >= self._most_waiting:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls wait already; try again later")
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def _read(self, rpc: Rpc, request: Any, caller: Caller, store: Store) -> bytes:
        refusal = rpc.refusal(request)
        if refusal is not None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, refusal)
        start = rpc.start(request)
        if start is not None:
            kind, number = start
            if number not in (await self._readable(caller, store, {kind: {number}}))[kind]:
                return _nothing(rpc, request)  # even if what surrounds it may be read
        for _ in range(_EMPTY_PAGES):
            answer = await store.call(rpc.name, request)
            readable = await self._readable(caller, store, rpc.ids(answer))
            withheld = rpc.limited(answer, readable)
            token = getattr(answer, "next_page_token", "")
            if not withheld or any(rpc.ids(answer).values()) or not token:
                break
            request.options.next_page_token = token
        if withheld and not any(rpc.ids(answer).values()) and rpc.nothing(request) is not None:
            return _nothing(rpc, request)
        serialized: bytes = answer.SerializeToString()
        return serialized

    async def _readable(self, caller: Caller, store: Store, ids: dict[str, set[int]]) -> dict[str, set[int]]:
        """Of these nodes, by kind, the ids of those that the caller may read."""
        owners: dict[str, Owners] = {
            "artifact": await ownership.of_artifacts(store.ask, ids.get("artifact", ()), self._inherit),
            "execution": await ownership.of_executions(store.ask, ids.get("execution", ()), self._inherit),
            "context": await ownership.of_contexts(store.ask, ids.get("context", ())),
        }
        every = sorted({name for known in owners.values() for names in known.values() for name in names})
        may = await asyncio.gather(*(self._reviews.may_read(caller, name) for name in every))
        allowed = {name for name, allows in zip(every, may, strict=True) if allows}
        return {
            kind: {number for number, names in known.items() if _covers(allowed, names)}
            for kind, known in owners.items()
        }


def _covers(allowed: set[str], names: Iterable[str]) -> bool:
    return allowed.issuperset(names) and bool(names)


def _nothing(rpc: Rpc, request: Any) -> bytes:
    """What the store answers where there is nothing. Raises Refused where that is an error."""
    message = rpc.nothing(request)
    if message is not None:
        raise Refused(grpc.StatusCode.NOT_FOUND, message)
    return b""


def _token(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(
            "expected the metadata `authorization: Bearer TOKEN`, once, with a Kubernetes token"
        )
    return token.strip()


def _limited(name: str) -> Rpc:
    rpc = LIMITED.get(name)
    if rpc is None:
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"{name} cannot be limited to a caller's namespaces")
    return rpc


def _parsed(rpc: Rpc, payload: bytes) -> Any:
    try:
        request = rpc.request.FromString(payload)
    except DecodeError:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"expected a {rpc.request.__name__}") from None
    request.DiscardUnknownFields()  # a store that knows them might answer something else
    return request
