"""Who a token belongs to, and which namespaces its owner may read: the API server's reviews, kept a while."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from memopod.kube import Client, Resource

_TOKEN_REVIEWS: Final = Resource(
    "authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False
)
_ACCESS_REVIEWS: Final = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)
_SERVICE_ACCOUNT: Final = "system:serviceaccount:"
_KEPT: Final = 10_000
"""Reviews that are kept at most: some hundred bytes each."""

T = TypeVar("T")


class Unauthenticated(Exception):
    """The token is missing, unknown, expired, or for somebody else."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a token, as the API server knows it."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def namespace(self) -> str | None:
        """The namespace of a service account; None for anybody else."""
        if not self.name.startswith(_SERVICE_ACCOUNT):
            return None
        return self.name.removeprefix(_SERVICE_ACCOUNT).partition(":")[0]


class Reviews:
    """Asks the API server. Every method raises ApiError where it does not answer."""

    def __init__(self, client: Client, *, audiences: Sequence[str], seconds: float) -> None:
        self._client = client
        self._audiences = list(audiences)
        self._callers: _Kept[Caller | None] = _Kept(seconds)
        self._access: _Kept[bool] = _Kept(seconds)

    async def caller(self, token: str) -> Caller:
        """Whose token it is. Raises Unauthenticated."""
        key = hashlib.sha256(token.encode()).digest()
        found = await self._callers.get(key, lambda: self._review(token))
        if found is None:
            raise Unauthenticated("the token is not one that the cluster accepts here")
        return found

    async def may_read(self, caller: Caller, namespace: str) -> bool:
        """A service account may read its own namespace, and everybody those whose Workflows they may get."""
        if not namespace:
            return False
        if namespace == caller.namespace:
            return True
        return await self._access.get((caller, namespace), lambda: self._may_get(caller, namespace))

    async def _review(self, token: str) -> Caller | None:
        spec: dict[str, Any] = {"token": token}
        if self._audiences:
            spec["audiences"] = self._audiences
        status = await self._create(_TOKEN_REVIEWS, spec)
        if status.get("authenticated") is not True:
            return None
        # An authenticator that knows no audiences returns none: then the token is not known to be for us.
        if self._audiences and not set(self._audiences) & set(status.get("audiences") or ()):
            return None
        user = status.get("user") or {}
        if not user.get("username"):
            return None
        return Caller(
            str(user["username"]),
            str(user.get("uid") or ""),
            tuple(user.get("groups") or ()),
            tuple((key, tuple(values)) for key, values in (user.get("extra") or {}).items()),
        )

    async def _may_get(self, caller: Caller, namespace: str) -> bool:
        spec = {
            "user": caller.name,
            "uid": caller.uid,
            "groups": list(caller.groups),
            "extra": {key: list(values) for key, values in caller.extra},
            "resourceAttributes": {
                "namespace": namespace, "verb": "get", "group": "argoproj.io", "resource": "workflows",
            },
        }  # fmt: skip
        status = await self._create(_ACCESS_REVIEWS, spec)
        return status.get("allowed") is True

    async def _create(self, resource: Resource, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": spec}
        answer = await self._client.create(resource, body)
        status: dict[str, Any] = answer.get("status") or {}
        return status


class _Kept(Generic[T]):
    """Answers by key, each for a number of seconds; the oldest go first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._answers: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        known = self._answers.get(key)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        answer = await ask()
        self._answers[key] = (time.monotonic() + self._seconds, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        return answer
