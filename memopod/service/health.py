"""The endpoints for probes and metrics, on a port of their own: plain HTTP, no authentication."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

Check = Callable[[], bool]
"""Answers at once, from what is known; never waits."""
Status = Callable[[], Mapping[str, Any]]
"""The same, for people and scripts: plain values."""


class Health:
    """Serves `/healthz` (the process lives), `/readyz` (all `checks` hold) and `/metrics`.

    A failing `/readyz` answers 503 with the names of the checks that do not hold, a line each. With
    `status`, `/status` answers what it says, as JSON.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        registry: CollectorRegistry = REGISTRY,
        status: Status | None = None,
    ) -> None:
        self._checks = checks
        self._status = status
        self._registry = registry
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one is chosen for 0)."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        if self._status is not None:
            app.router.add_get("/status", self._tell_status)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening; requests under way are answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        failing = [name for name, check in self._checks.items() if not check()]
        if failing:
            return web.Response(status=503, text="".join(f"not ready: {name}\n" for name in failing))
        return web.Response(text="ok\n")

    async def _tell_status(self, _request: web.Request) -> web.Response:
        return web.json_response(dict(self._status()) if self._status is not None else {})

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
