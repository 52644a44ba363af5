"""Who may do what with entries: whoever has a token of a file, or as Kubernetes says.

Kubernetes is asked in the words of its own permissions: may this token's user `list` (look), `update` (pin)
or `delete` (take back) `entries` of the API group `memopod.io`, in this namespace? No such objects exist: the
words are there so that Roles can grant them (deploy/base/entries-api.yaml adds them to view and edit).
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from memopod.kube import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS, ApiError, Client

LIST: Final = "list"
UPDATE: Final = "update"
DELETE: Final = "delete"
_SHORTEST_TOKEN = 16
_REMEMBER_SECONDS = 10.0
_MOST_REMEMBERED = 1000
_REVIEW_SECONDS = 5.0
_USER_FIELDS = (("username", "user"), ("groups", "groups"), ("uid", "uid"), ("extra", "extra"))


class UnknownToken(Exception):
    """Nobody knows whose token it is."""


class CannotTell(Exception):
    """Whoever knows did not answer."""


class Authorizer(Protocol):
    """Decides about a request before anything is read."""

    async def allows(self, token: str, verb: str, namespace: str | None) -> bool:
        """Whether the token's owner may; None stands for all namespaces.

        Raises UnknownToken, and CannotTell.
        """


class TokenFile:
    """The tokens in a file, a line each, may do everything. The file is read again when it changes.

    Raises ValueError for a token of less than 16 characters, and OSError.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._read: tuple[int, int] | None = None
        self._digests: Sequence[bytes] = ()
        self._load()

    async def allows(self, token: str, _verb: str, _namespace: str | None) -> bool:
        """See `Authorizer.allows`."""
        try:
            self._load()
        except (OSError, ValueError) as error:
            raise CannotTell from error
        given = _digest(token)
        if not any(hmac.compare_digest(given, known) for known in self._digests):
            raise UnknownToken
        return True

    def _load(self) -> None:
        status = self._path.stat()
        version = status.st_mtime_ns, status.st_ino
        if version == self._read:
            return
        tokens = self._path.read_text().split()
        if not tokens or any(len(token) < _SHORTEST_TOKEN for token in tokens):
            raise ValueError(
                f"{self._path}: expected tokens of {_SHORTEST_TOKEN} characters or more, a line each"
            )
        self._digests = [_digest(token) for token in tokens]
        self._read = version


class KubernetesTokens:
    """Asks the API server (TokenReview, SubjectAccessReview), and remembers its answers for ten seconds."""

    def __init__(self, client: Client, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: OrderedDict[tuple[bytes, str, str], tuple[float, bool]] = OrderedDict()

    async def allows(self, token: str, verb: str, namespace: str | None) -> bool:
        """See `Authorizer.allows`."""
        which = _digest(token), verb, namespace or ""
        until, allowed = self._known.get(which, (0.0, False))
        if self._clock() < until:
            return allowed
        asked_at = self._clock()
        try:
            allowed = await self._may(await self._user(token), verb, namespace or "")
        except ApiError as error:
            raise CannotTell from error
        self._known[which] = asked_at + _REMEMBER_SECONDS, allowed
        while len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return allowed

    async def _user(self, token: str) -> Mapping[str, Any]:
        status = await self._review(TOKEN_REVIEWS, {"token": token})
        if not status.get("authenticated") or status.get("error"):
            raise UnknownToken
        user: Mapping[str, Any] = status.get("user") or {}
        return user

    async def _may(self, user: Mapping[str, Any], verb: str, namespace: str) -> bool:
        asked = {"group": "memopod.io", "resource": "entries", "verb": verb, "namespace": namespace}
        named = {theirs: user[own] for own, theirs in _USER_FIELDS if user.get(own)}
        status = await self._review(SUBJECT_ACCESS_REVIEWS, {**named, "resourceAttributes": asked})
        return status.get("allowed") is True and not status.get("denied")

    async def _review(self, resource: Any, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": dict(spec)}
        answer = await self._client.create(resource, body, timeout=_REVIEW_SECONDS)
        status: Mapping[str, Any] = answer.get("status") or {}
        return status


class FirstThatKnows:
    """Several authorizers: the first that knows the token decides."""

    def __init__(self, authorizers: Sequence[Authorizer]) -> None:
        self._authorizers = authorizers

    async def allows(self, token: str, verb: str, namespace: str | None) -> bool:
        """See `Authorizer.allows`."""
        for authorizer in self._authorizers:
            try:
                return await authorizer.allows(token, verb, namespace)
            except UnknownToken:
                continue
        raise UnknownToken


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
