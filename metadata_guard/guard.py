"""One call: who asks, what the store says, and what of it the caller gets."""

from collections.abc import Iterable
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from memopod.kube import ApiError
from metadata_guard import metrics, ownership
from metadata_guard.answers import LIMITED, Rpc
from metadata_guard.ownership import Namespaces
from metadata_guard.reviews import Caller, Reviews, Unauthenticated
from metadata_guard.store import Store, StoreError

_EMPTY_PAGES: Final = 20
"""Pages in a row of which all was withheld that are passed over in one call."""
_log = structlog.get_logger()


class Refused(Exception):
    """The call ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Guard:
    """Answers the reads of callers within the namespaces that they may read."""

    def __init__(self, reviews: Reviews, store: Store) -> None:
        self._reviews = reviews
        self._store = store

    async def call(
        self, name: str, payload: bytes, authorization: str | None, seconds: float | None
    ) -> bytes:
        """The answer to an RPC as its caller may have it. Raises Refused."""
        try:
            caller = await self._reviews.caller(_token(authorization))
            rpc = LIMITED.get(name)
            if rpc is None:
                raise Refused(
                    grpc.StatusCode.PERMISSION_DENIED, f"{name} cannot be limited to a caller's namespaces"
                )
            return await self._read(rpc, _parsed(rpc, payload), caller, seconds)
        except Unauthenticated as error:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, str(error)) from None
        except ApiError as error:
            _log.warning("the API server does not review", error=str(error))
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, "the API server does not say who may read what"
            ) from None
        except StoreError as error:
            raise Refused(error.code, error.message) from None

    async def _read(self, rpc: Rpc, request: Any, caller: Caller, seconds: float | None) -> bytes:
        refusal = rpc.refusal(request)
        if refusal is not None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, refusal)
        store = self._store.within(seconds)
        start = rpc.start(request)
        if start is not None and not (await self._readable(caller, store, {"context": {start}}))["context"]:
            return b""
        for _ in range(_EMPTY_PAGES):
            answer = await store.call(rpc.name, request)
            readable = await self._readable(caller, store, rpc.ids(answer))
            withheld = rpc.limited(answer, readable)
            metrics.WITHHELD.labels(rpc.name).inc(withheld)
            token = getattr(answer, "next_page_token", "")
            if not withheld or any(rpc.ids(answer).values()) or not token:
                break
            request.options.next_page_token = token
        if withheld and not any(rpc.ids(answer).values()):
            nothing = rpc.nothing(request)
            if nothing is not None:
                raise Refused(grpc.StatusCode.NOT_FOUND, nothing)
        serialized: bytes = answer.SerializeToString()
        return serialized

    async def _readable(self, caller: Caller, store: Store, ids: dict[str, set[int]]) -> dict[str, set[int]]:
        """Of these nodes, by kind, the ids of those that the caller may read."""
        owners: dict[str, dict[int, Namespaces]] = {
            "artifact": await ownership.of_artifacts(store.ask, ids.get("artifact", ())),
            "execution": await ownership.of_executions(store.ask, ids.get("execution", ())),
            "context": await ownership.of_contexts(store.ask, ids.get("context", ())),
        }
        every = {name for known in owners.values() for names in known.values() for name in names}
        allowed = {name for name in every if await self._reviews.may_read(caller, name)}
        return {
            kind: {number for number, names in known.items() if _covers(allowed, names)}
            for kind, known in owners.items()
        }


def _covers(allowed: set[str], names: Iterable[str]) -> bool:
    return allowed.issuperset(names) and bool(names)


def _token(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("expected the metadata `authorization: Bearer TOKEN`, with a Kubernetes token")
    return token.strip()


def _parsed(rpc: Rpc, payload: bytes) -> Any:
    try:
        request = rpc.request.FromString(payload)
    except DecodeError:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"expected a {rpc.request.__name__}") from None
    request.DiscardUnknownFields()  # a store that knows them might answer something else
    return request
