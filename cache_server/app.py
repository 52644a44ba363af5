"""The cache server's process: what is started, in which order, and how it ends."""

import asyncio
import contextlib
import socket
import ssl
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from cache_server.admission import Policy
from cache_server.artifacts import Artifacts
from cache_server.certificates import Certificate
from cache_server.controller import Controller
from cache_server.decision import Decider, DecisionRules
from cache_server.entries import Entries, open_entries
from cache_server.identity import Identifier
from cache_server.recorder import Recorder
from cache_server.settings import Settings
from cache_server.sweeper import Sweeper
from cache_server.webhook import build_webhook
from memopod.kube import PODS, Client, Informer, LeaderElector, LeaseWatcher
from memopod.service import Health, configure_logs, parse, run
from memopod.steps import names
from memopod.steps.key import KeyRules
from memopod.steps.staleness import parse_duration

_log = structlog.get_logger()
_SELECTOR = f"{names.STEP_LABEL} in ({names.HELD},{names.RELEASED})"
_LOOK_SECONDS = 1.0
"""How often all Pods are looked at again: for those that are overdue, or that a failed call left."""
_DRAIN_SECONDS = 8.0
"""Shutdown: how long decisions under way may take to end. Kubernetes kills after 30 s."""
_SECRET_BYTES = 32


def main(argv: list[str] | None = None) -> int:
    """Run the cache server. Returns the exit status."""
    settings = parse(
        Settings, argv, prog="memopod cache-server", prefix="MEMOPOD_CACHE",
        description="Admission webhook and controller: hold repeated steps, and finish them without a Pod.",
    )  # fmt: skip
    try:
        configure_logs("cache-server", level=settings.log_level)
        secret = read_secret(settings.seal_key_file)
        rules = _decision_rules(settings, secret)
    except (ValueError, OSError) as error:
        print(f"memopod cache-server: {error}", file=sys.stderr)
        return 2
    return run(lambda stop: _serve(settings, rules, stop))


def read_secret(path: str) -> bytes:
    """The secret that seals keys. Raises OSError or ValueError with what to do about it."""
    if not path:
        raise ValueError("--seal-key-file is missing: a file with 32 random bytes or more")
    secret = Path(path).read_bytes()
    if len(secret) < _SECRET_BYTES:
        raise ValueError(f"--seal-key-file {path}: expected {_SECRET_BYTES} bytes or more, got {len(secret)}")
    return secret


def _decision_rules(settings: Settings, secret: bytes) -> DecisionRules:
    check = settings.artifact_check
    if check == "auto":
        check = "require" if settings.object_store else "off"
    return DecisionRules(
        secret=secret,
        check=check,
        timeout=settings.decision_timeout,
        default_staleness=_limit("--default-staleness", settings.default_staleness),
        maximum_staleness=_limit("--maximum-staleness", settings.maximum_staleness),
    )


def _limit(flag: str, text: str) -> float | None:
    if not text:
        return None
    seconds = parse_duration(text)
    if seconds is None:
        raise ValueError(f"{flag}: expected an ISO 8601 duration such as P30D, got {text!r}")
    return None if seconds < 0 else seconds


@dataclass(slots=True)
class _Parts:
    """All that runs, wired."""

    client: Client
    entries: Entries
    informer: Informer
    elector: LeaderElector
    lease: LeaseWatcher
    controller: Controller
    recorder: Recorder
    sweeper: Sweeper

    def on_event(self, event: str, pod: dict[str, Any]) -> None:
        """A Pod of a step has changed."""
        if event == "DELETED":
            self.controller.forget(pod)
            self.recorder.forget(pod)
        else:
            self.controller.see(pod)
            self.recorder.see(pod)

    def look_at_all(self) -> None:
        """See every Pod again: a new leader's first look, and everybody's for overdue ones."""
        pods = list(self.informer.objects.values())
        for pod in pods:
            self.on_event("MODIFIED", pod)
        self.sweeper.sweep(pods)


@contextlib.asynccontextmanager
async def _assemble(settings: Settings, rules: DecisionRules) -> AsyncIterator[_Parts]:
    identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    namespace = settings.watch_namespace or None
    key_rules = KeyRules(ignored_containers=frozenset(settings.ignored_sidecars))
    artifacts = Artifacts.from_settings(settings.object_store)
    async with (
        Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-cache") as client,
        open_entries(settings.database) as entries,
    ):
        elector = LeaderElector(
            client, namespace=settings.lease_namespace, name=settings.lease_name, identity=identity
        )
        identifier = Identifier(client, artifacts, entries, key_rules)
        decider = Decider(identifier, entries, artifacts, rules)
        leads = elector.is_leader
        parts = _Parts(
            client=client,
            entries=entries,
            informer=Informer(client, PODS, namespace=namespace, label_selector=_SELECTOR),
            elector=elector,
            lease=LeaseWatcher(client, settings.lease_namespace, settings.lease_name),
            controller=Controller(
                client, decider, entries, leads=leads, settle_time=settings.settle_time,
                late_margin=settings.late_margin, concurrency=settings.concurrency,
            ),
            recorder=Recorder(
                client, identifier, entries, artifacts, decider, key_rules,
                leads=leads, concurrency=settings.concurrency,
            ),
            sweeper=Sweeper(client, identity=identity, claim_wait=settings.claim_wait),
        )  # fmt: skip
        parts.informer.on_event = parts.on_event
        yield parts


async def _serve(settings: Settings, rules: DecisionRules, stop: asyncio.Event) -> None:
    certificate = Certificate(settings.tls_cert_file, settings.tls_key_file)
    policy = Policy(
        secret=rules.secret,
        trusted_creators=frozenset(settings.trusted_creators),
        hold_seconds=settings.hold_timeout,
        rules=KeyRules(ignored_containers=frozenset(settings.ignored_sidecars)),
    )
    async with _assemble(settings, rules) as parts:
        health = Health({"pods": parts.informer.synced.is_set, "leader": parts.lease.fresh})
        runner = web.AppRunner(build_webhook(policy, parts.lease.fresh), access_log=None)
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(parts.informer.run(), name="informer:pods"),
                group.create_task(parts.lease.run(), name="informer:lease"),
                group.create_task(_look_regularly(parts), name="look"),
                group.create_task(certificate.watch(), name="certificate"),
            ]
            leading = group.create_task(parts.elector.run(), name="leader")
            port = await _listen(runner, settings, certificate.context)
            health_port = await health.start(settings.health_host, settings.health_port)
            _log.info("serving", port=port, health_port=health_port)
            await stop.wait()
            # No new Pods, then no new decisions, then the decisions under way, then the Lease.
            await runner.cleanup()
            for task in watching:
                task.cancel()
            await asyncio.gather(
                parts.controller.drain(_DRAIN_SECONDS),
                parts.recorder.drain(_DRAIN_SECONDS),
                parts.sweeper.drain(_DRAIN_SECONDS),
            )
            leading.cancel()
        await health.stop()
    _log.info("stopped")


async def _look_regularly(parts: _Parts) -> None:
    await parts.informer.synced.wait()
    while True:
        parts.look_at_all()
        await asyncio.sleep(_LOOK_SECONDS)


async def _listen(runner: web.AppRunner, settings: Settings, context: ssl.SSLContext) -> int:
    await runner.setup()
    site = web.TCPSite(runner, settings.listen_host, settings.listen_port, ssl_context=context)
    await site.start()
    return int(runner.addresses[0][1])
