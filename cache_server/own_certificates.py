"""Certificates without cert-manager: authority and certificate in a Secret, `caBundle` kept in step.

Every replica serves what the Secret holds; who leads renews it, and writes the authorities into the webhook
configuration. Each write names the version that it replaces, so two that think they lead do no harm.
"""

import asyncio
import base64
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from cache_server.authority import Lifetimes, Material, found, renewed
from cache_server.certificates import load, new_context
from memopod.kube import (
    MUTATING_WEBHOOKS,
    SECRETS,
    ApiError,
    Client,
    Conflict,
    Forbidden,
    NotFound,
)

_log = structlog.get_logger()
_LOOK_SECONDS = 10.0
_FIRST_PAUSE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where things are: the Secret, the webhook configuration, and the names of the webhook itself."""

    namespace: str
    secret: str
    configuration: str
    names: tuple[str, ...]


class OwnCertificates:
    """Keeps `context` and the cluster up to date; made by `open`."""

    def __init__(
        self, client: Client, place: Place, lifetimes: Lifetimes, *, look_seconds: float = _LOOK_SECONDS
    ) -> None:
        self.context = new_context()
        self._client = client
        self._place = place
        self._lifetimes = lifetimes
        self._look_seconds = look_seconds
        self._version = ""
        self._served: tuple[bytes, bytes] | None = None
        self._told = ""

    async def obtain(self) -> Material:
        """What the Secret holds, made if it is not there, and served from now on.

        Raises OSError, which says what to do, when the Secret can neither be read nor made.
        """
        while True:
            try:
                material = await self._read() or await self._create()
            except Conflict:
                continue
            except ValueError as error:
                raise OSError(
                    f"Secret {self._place.namespace}/{self._place.secret}: {error}; "
                    "delete it, and it is made anew"
                ) from error
            except Forbidden as error:
                raise OSError(
                    f"Secret {self._place.namespace}/{self._place.secret}: may not be read or made: "
                    f"{error.reason}; grant get, create and update, or use --certificates=files"
                ) from error
            except ApiError as error:
                _log.warning("cannot read the certificate's Secret, trying again", cause=error.reason)
                await asyncio.sleep(_FIRST_PAUSE)
                continue
            self._serve(material)
            return material

    async def keep(self, leads: Callable[[], bool]) -> None:
        """Serve what changes, and renew and spread it while `leads()` is true; runs until cancelled."""
        while True:
            try:
                await self._look(leads)
                self._told = ""
            except (ApiError, ValueError, OSError) as error:
                # OSError: no place for the files that OpenSSL reads.
                self._tell(error)
            await asyncio.sleep(self._look_seconds)

    def _tell(self, error: Exception) -> None:
        """Log a failure once, not every few seconds."""
        if str(error) != self._told:
            self._told = str(error)
            _log.warning("own certificates: what is served stays as it is", cause=self._told)

    async def _look(self, leads: Callable[[], bool]) -> None:
        try:
            material = await self._read()
        except ValueError as error:
            if not leads():
                raise
            _log.warning("the certificate's Secret is unusable and made anew", cause=str(error))
            material = await self._write(found(self._place.names, self._lifetimes, datetime.now(UTC)))
        if material is None:
            material = await self._create() if leads() else None
        if material is None:
            return
        self._serve(material)
        if not leads():
            return
        trusted = await self._spread(material.authorities)
        due = renewed(material, self._place.names, self._lifetimes, datetime.now(UTC), trusted=trusted)
        if due is not material:
            self._serve(await self._write(due))
            await self._spread(due.authorities)
            _log.info("certificate renewed", valid_until=due.leaf.not_valid_after_utc.isoformat())

    async def _read(self) -> Material | None:
        try:
            secret = await self._client.get(SECRETS, self._place.secret, namespace=self._place.namespace)
        except NotFound:
            return None
        self._version = secret["metadata"]["resourceVersion"]
        data = secret.get("data") or {}
        return Material.read({name: base64.b64decode(value) for name, value in data.items()})

    async def _create(self) -> Material:
        material = found(self._place.names, self._lifetimes, datetime.now(UTC))
        created = await self._client.create(SECRETS, self._secret(material), namespace=self._place.namespace)
        self._version = created["metadata"]["resourceVersion"]
        _log.info("certificate authority made", secret=self._place.secret)
        return material

    async def _write(self, material: Material) -> Material:
        body = self._secret(material)
        body["metadata"]["resourceVersion"] = self._version
        written = await self._client.replace(
            SECRETS, self._place.secret, body, namespace=self._place.namespace
        )
        self._version = written["metadata"]["resourceVersion"]
        return material

    def _secret(self, material: Material) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {"name": self._place.secret, "namespace": self._place.namespace},
            "data": {name: base64.b64encode(value).decode() for name, value in material.data().items()},
        }

    async def _spread(self, authorities: bytes) -> bool:
        """Write the authorities into the webhook configuration; True if they were in all its webhooks."""
        try:
            configuration = await self._client.get(MUTATING_WEBHOOKS, self._place.configuration)
        except NotFound:
            # Whoever makes it finds its caBundle filled a moment later.
            return False
        bundle = base64.b64encode(authorities).decode()
        version = configuration["metadata"]["resourceVersion"]
        patch: list[dict[str, Any]] = [
            {"op": "add", "path": f"/webhooks/{position}/clientConfig/caBundle", "value": bundle}
            for position, webhook in enumerate(configuration.get("webhooks") or ())
            if webhook["clientConfig"].get("caBundle") != bundle
        ]
        if not patch:
            return True
        test = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
        await self._client.patch(MUTATING_WEBHOOKS, self._place.configuration, [test, *patch])
        _log.info("caBundle written", configuration=self._place.configuration)
        return False

    def _serve(self, material: Material) -> None:
        """Load certificate and key into the context; open connections keep theirs."""
        pair = material.certificate, material.key
        if pair == self._served:
            return
        with tempfile.TemporaryDirectory(prefix="memopod-") as folder:
            # OpenSSL reads files. The folder is this user's alone.
            cert, key = Path(folder) / "tls.crt", Path(folder) / "tls.key"
            cert.write_bytes(pair[0])
            key.write_bytes(pair[1])
            load(self.context, str(cert), str(key))
        self._served = pair
