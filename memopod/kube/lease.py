"""One leader among several replicas, and a heartbeat that others can see: a Lease.

Clocks of two machines differ, so no time written by another machine is compared with our own. A
leader counts from when its last successful renewal was *sent*; everybody else from when they *received*
the last renewal, which is later. A leader stops `give_up` seconds after the one, another takes over
`lease_seconds` after the other: there are never two. Each write names the version that it replaces.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from memopod.kube.client import Client
from memopod.kube.errors import ApiError, Conflict, NotFound
from memopod.kube.informer import Informer
from memopod.kube.resources import LEASES
from memopod.kube.timestamps import now_micro

_RELEASE_SECONDS = 2.0
"""How long a shutdown may wait to hand its Lease over; after that the Lease runs out by itself."""

_HEARTBEAT_WATCH_SECONDS = 10.0
"""Short: something is to be heard each second, so a silent connection must soon be replaced."""

Lease = dict[str, Any]


class LeaderElector:
    """Takes a Lease when nobody holds it, and renews it.

    `lease_seconds` (whole seconds) is how long a silent leader is waited for; `give_up` when a leader
    that cannot renew stops being one, counted from the sending of its last successful renewal;
    `renew_seconds` the time between renewals; `retry_seconds` between a follower's looks. With the
    defaults a dead leader is replaced within 5 s, one that shut down within half a second.
    `identity` must be unique to this process. `on_change(is_leader)` is called on each change.
    """

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_seconds: int = 4,
        give_up: float = 3.0,
        renew_seconds: float = 1.0,
        retry_seconds: float = 0.4,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        if not 0 < renew_seconds < give_up < lease_seconds:
            raise ValueError(
                "expected renew_seconds < give_up < lease_seconds, "
                f"got {renew_seconds:g}, {give_up:g}, {lease_seconds:g}"
            )
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._give_up = give_up
        self._renew_seconds = renew_seconds
        self._retry_seconds = retry_seconds
        self._on_change = on_change
        self._lease: Lease | None = None
        self._own_write = False
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0
        self._missed_at: float | None = None
        self._leader_until = 0.0
        self._told = False
        self._log = structlog.get_logger().bind(lease=name, identity=identity)

    def is_leader(self) -> bool:
        """Whether this process leads at this very moment; ask again before each write."""
        return time.monotonic() < self._leader_until

    async def run(self, *, hand_over: Callable[[], bool] = lambda: True) -> None:
        """Take part until cancelled, then hand the Lease over at once if `hand_over()`, else let it run out.

        Others may only lead at once where no write of this leader can still be under way.
        """
        try:
            while True:
                pause = await self._round()
                await asyncio.sleep(pause)
        finally:
            self._leader_until = 0.0
            self._tell()
            if hand_over():
                await self._release()

    async def _round(self) -> float:
        """Look, and take or renew if that is allowed; returns the seconds until the next round."""
        begun = time.monotonic()
        try:
            if not self._own_write:
                await self._look()
            if self._may_take():
                await self._write()
        except (Conflict, NotFound):
            # Somebody changed or removed what was ours: no leader until it is clear again who leads.
            self._own_write = False
            self._leader_until = 0.0
        except ApiError as error:
            self._own_write = False
            self._log.warning("cannot use the lease", status=error.status, error=str(error))
        self._tell()
        return self._pause(time.monotonic() - begun)

    async def _look(self) -> None:
        try:
            self._lease = await self._client.get(
                LEASES, self._name, namespace=self._namespace, timeout=self._request_seconds()
            )
        except NotFound:
            self._lease = None
            self._leader_until = 0.0
            if self._missed_at is None:
                self._missed_at = time.monotonic()
            return
        self._missed_at = None
        spec = self._lease["spec"]
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen = seen
            self._seen_at = time.monotonic()
        if spec.get("holderIdentity") != self._identity:
            self._leader_until = 0.0

    def _may_take(self) -> bool:
        if self._lease is None and self._seen and self._missed_at is not None:
            # It was there and was removed: its holder may not have noticed yet.
            return time.monotonic() >= self._missed_at + self._lease_seconds
        holder = self._lease["spec"].get("holderIdentity") if self._lease else None
        return not holder or holder == self._identity or self._expires_in() <= 0

    def _expires_in(self) -> float:
        spec = self._lease["spec"] if self._lease else {}
        lasts = max(float(spec.get("leaseDurationSeconds") or 0), self._lease_seconds)
        return self._seen_at + lasts - time.monotonic()

    async def _write(self) -> None:
        sent = time.monotonic()
        timeout = self._request_seconds()
        if self._lease is None:
            lease = await self._client.create(
                LEASES, self._first(), namespace=self._namespace, timeout=timeout
            )
        else:
            renewed = self._renewed(self._lease)
            lease = await self._client.replace(
                LEASES, self._name, renewed, namespace=self._namespace, timeout=timeout
            )
        self._lease = lease
        self._own_write = True
        self._leader_until = sent + self._give_up

    def _request_seconds(self) -> float:
        """A leader's request ends when its time does, so that the change is told at once."""
        left = self._leader_until - time.monotonic()
        if left <= 0:
            return self._give_up
        # Less than all that is left, so that one lost connection leaves time for another try.
        return min(left, max(0.25, 0.6 * left))

    def _pause(self, spent: float) -> float:
        if self._own_write:
            return max(0.0, self._renew_seconds - spent)
        if self.is_leader():
            return min(self._retry_seconds, max(0.0, self._leader_until - time.monotonic()))
        if self._lease is not None and self._lease["spec"].get("holderIdentity"):
            return max(0.05, min(self._retry_seconds, self._expires_in()))
        return self._retry_seconds

    def _first(self) -> Lease:
        spec = {"leaseTransitions": 0, "acquireTime": now_micro()}
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {**spec, **self._claim()},
        }

    def _renewed(self, lease: Lease) -> Lease:
        spec = {**lease["spec"], **self._claim()}
        if lease["spec"].get("holderIdentity") != self._identity:
            spec["acquireTime"] = now_micro()
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        return {**lease, "spec": spec}

    def _claim(self) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._lease_seconds,
            "renewTime": now_micro(),
        }

    def _tell(self) -> None:
        leads = self.is_leader()
        if leads == self._told:
            return
        self._told = leads
        self._log.info("leading" if leads else "no longer leading")
        if self._on_change is not None:
            self._on_change(leads)

    async def _release(self) -> None:
        """Give the Lease away if it is ours; a write under way at the end may have made it so."""
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._look()
                if self._lease is None or self._lease["spec"].get("holderIdentity") != self._identity:
                    return
                spec = {**self._lease["spec"], "holderIdentity": "", "renewTime": now_micro()}
                await self._client.replace(
                    LEASES, self._name, {**self._lease, "spec": spec}, namespace=self._namespace
                )
        except (ApiError, TimeoutError) as error:
            self._log.warning("lease not released; it will run out", error=str(error))


class LeaseWatcher:
    """Whether somebody renews a Lease, judged by when this process last received a renewal.

    A Lease found at the start says nothing about when it was renewed: it becomes fresh with the first
    renewal seen. A released or deleted one is not fresh. `max_age` is in seconds; without it the
    Lease's own duration counts.
    """

    def __init__(self, client: Client, namespace: str, name: str, *, max_age: float | None = None) -> None:
        self._informer = Informer(
            client,
            LEASES,
            namespace=namespace,
            name=name,
            on_event=self._changed,
            watch_seconds=_HEARTBEAT_WATCH_SECONDS,
        )
        self._max_age = max_age
        self._renew_time: Any = None
        self._received_at: float | None = None
        self._lasts = 0.0

    def fresh(self) -> bool:
        """Whether the last renewal came recently enough."""
        if self._received_at is None:
            return False
        lasts = self._lasts if self._max_age is None else self._max_age
        return time.monotonic() - self._received_at < lasts

    async def run(self) -> None:
        """Follow the Lease until cancelled."""
        await self._informer.run()

    def _changed(self, kind: str, lease: Lease) -> None:
        spec = lease["spec"]
        renewed = spec.get("renewTime") != self._renew_time
        self._renew_time = spec.get("renewTime")
        self._lasts = float(spec.get("leaseDurationSeconds") or 0)
        if kind == "DELETED" or not spec.get("holderIdentity"):
            self._received_at = None
        elif renewed and (kind == "MODIFIED" or self._informer.synced.is_set()):
            self._received_at = time.monotonic()
