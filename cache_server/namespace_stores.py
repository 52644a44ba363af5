"""Object stores that are asked with a namespace's own credentials: where two people have agreed to it.

The cluster's operator names the endpoint (`--object-store ENDPOINT/*=s3://*?endpoint=URL`), so that no step
can make this server connect elsewhere. Whoever administers the namespace lets it read the Secret that Argo
uses there (a Role and a RoleBinding in that namespace); without, its artifacts count as not checkable.
"""

import base64
import binascii
import time
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from cache_server.artifacts import Artifacts, ArtifactStoreUnavailable, open_bucket
from memopod.kube import SECRETS, ApiError, Client, Forbidden, NotFound
from memopod.steps import Step

_log = structlog.get_logger()
_MEMORY_SECONDS = 60.0
"""How long credentials are kept: a Secret that was rotated or taken away counts from then on."""

Place = tuple[str, str]
Reference = tuple[str, str]
"""Name of a Secret, and the key in it."""


class NamespaceArtifacts(Artifacts):
    """The cluster's stores, and for each step those that its namespace lets this server read."""

    def __init__(self, base: Artifacts, client: Client) -> None:
        super().__init__(base.stores, call_timeout=base.call_timeout, endpoints=base.endpoints)
        self._client = client
        self._known: dict[tuple[Any, ...], tuple[float, Artifacts]] = {}

    async def within(self, step: Step) -> Artifacts:
        """See `Artifacts.within`. Raises ArtifactStoreUnavailable if the API server does not answer."""
        wanted = {place: keys for place, keys in _credentials(step) if place[0] in self.endpoints}
        wanted = {place: keys for place, keys in wanted.items() if place not in self.stores}
        if not wanted:
            return self
        key = (step.namespace, *sorted(wanted.items()))
        kept = self._known.get(key)
        now = time.monotonic()
        if kept is None or now - kept[0] > _MEMORY_SECONDS:
            self._known = {k: v for k, v in self._known.items() if now - v[0] <= _MEMORY_SECONDS}
            kept = self._known[key] = now, await self._open(step.namespace, wanted)
        return kept[1]

    async def _open(self, namespace: str, wanted: Mapping[Place, tuple[Reference, Reference]]) -> Artifacts:
        stores = dict(self.stores)
        for place, (user, password) in wanted.items():
            try:
                credentials = [await self._read(namespace, reference) for reference in (user, password)]
            except (Forbidden, NotFound, KeyError, ValueError, binascii.Error) as error:
                _log.info("no credentials for a bucket", namespace=namespace, cause=type(error).__name__)
                continue
            except ApiError as error:
                raise ArtifactStoreUnavailable(f"a Secret of {namespace}: {error.reason}") from error
            stores[place] = open_bucket(place[1], self.endpoints[place[0]], credentials, self.call_timeout)
        return Artifacts(stores, call_timeout=self.call_timeout, slots=self.slots)

    async def _read(self, namespace: str, reference: Reference) -> str:
        secret = await self._client.get(SECRETS, reference[0], namespace=namespace)
        return base64.b64decode((secret.get("data") or {})[reference[1]]).decode()


def for_namespaces(artifacts: Artifacts, client: Client) -> Artifacts:
    """The stores as configured: with namespaces' own credentials where an endpoint stands for any bucket."""
    return NamespaceArtifacts(artifacts, client) if artifacts.endpoints else artifacts


def _credentials(step: Step) -> Iterator[tuple[Place, tuple[Reference, Reference]]]:
    """The buckets that a step's template names, each with where its credentials are."""
    template = step.template or {}
    holders = [template.get("archiveLocation") or {}]
    for field in ("inputs", "outputs"):
        holders += (template.get(field) or {}).get("artifacts") or ()
    for holder in holders:
        s3 = holder.get("s3") or {}
        user, password = s3.get("accessKeySecret"), s3.get("secretKeySecret")
        if s3.get("bucket") and isinstance(user, dict) and isinstance(password, dict):
            references = _reference(user), _reference(password)
            yield (str(s3.get("endpoint") or ""), str(s3["bucket"])), references


def _reference(selector: Mapping[str, Any]) -> Reference:
    return str(selector.get("name", "")), str(selector.get("key", ""))
