"""Who a token belongs to, and which namespaces its owner may read: the API server's reviews, kept a while."""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from memopod.kube import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS, Client, Resource
from metadata_guard.kept import Kept

_SERVICE_ACCOUNT: Final = "system:serviceaccount:"
_ACCOUNTS_OF: Final = "system:serviceaccounts:"
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123), as a namespace's name must be; `""` and `*` would ask for all of them."""
_KEPT: Final = 10_000
"""Reviews that are kept at most: some hundred bytes each."""
_STRANGERS, _STRANGER_SECONDS = 1_000, 5.0
"""Tokens that the cluster does not know are kept apart: whoever makes them up puts nobody else's out."""
_AT_ONCE: Final = 16
_REVIEW_SECONDS: Final = 10.0


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
        namespace = self.name.removeprefix(_SERVICE_ACCOUNT).partition(":")[0]
        # Other authenticators may give names like these, but not the group beside it.
        return namespace if f"{_ACCOUNTS_OF}{namespace}" in self.groups else None


class Reviews:
    """Asks the API server. Every method raises ApiError where it does not answer."""

    def __init__(self, client: Client, *, audiences: Sequence[str], seconds: float) -> None:
        self._client = client
        self._audiences = list(audiences)
        self._callers: Kept[Caller] = Kept(seconds, _KEPT)
        self._strangers: Kept[None] = Kept(min(seconds, _STRANGER_SECONDS), _STRANGERS)
        self._access: Kept[bool] = Kept(seconds, _KEPT)
        self._places = {kind: asyncio.Semaphore(_AT_ONCE) for kind in (TOKEN_REVIEWS, SUBJECT_ACCESS_REVIEWS)}

    async def close(self) -> None:
        """Give up what is asked."""
        for kept in (self._callers, self._strangers, self._access):
            await kept.close()

    async def caller(self, token: str) -> Caller:
        """Whose token it is. Raises Unauthenticated."""
        key = hashlib.sha256(token.encode()).digest()
        if key not in self._strangers:
            try:
                return await self._callers.get(key, lambda: self._review(token))
            except Unauthenticated:
                self._strangers.put(key, None)
        raise Unauthenticated("the token is not one that the cluster accepts here")

    async def may_read(self, caller: Caller, namespace: str) -> bool:
        """A service account may read its own namespace, and everybody those whose Workflows they may get."""
        if not _NAMESPACE.fullmatch(namespace):
            return False
        if namespace == caller.namespace:
            return True
        return await self._access.get((caller, namespace), lambda: self._may_get(caller, namespace))

    async def _review(self, token: str) -> Caller:
        spec: dict[str, Any] = {"token": token}
        if self._audiences:
            spec["audiences"] = self._audiences
        status = await self._create(TOKEN_REVIEWS, spec)
        if status.get("authenticated") is not True or status.get("error"):
            raise Unauthenticated
        # An authenticator that knows no audiences returns none: then the token is not known to be for us.
        if self._audiences and not set(self._audiences) & set(status.get("audiences") or ()):
            raise Unauthenticated
        user = status.get("user") or {}
        if not user.get("username"):
            raise Unauthenticated
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
        status = await self._create(SUBJECT_ACCESS_REVIEWS, spec)
        return status.get("allowed") is True and not status.get("denied")

    async def _create(self, resource: Resource, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": spec}
        async with self._places[resource]:
            answer = await self._client.create(resource, body, timeout=_REVIEW_SECONDS)
        status: dict[str, Any] = answer.get("status") or {}
        return status
