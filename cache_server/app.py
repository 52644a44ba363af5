"""The cache server's process: what is started, in which order, and how it ends."""

import asyncio
import socket
import ssl
import sys
import uuid
from pathlib import Path

import structlog
from aiohttp import web

from cache_server.admission import Policy
from cache_server.artifacts import Artifacts
from cache_server.certificates import reload_on_change, server_context
from cache_server.controller import Controller
from cache_server.decision import Decider, DecisionRules
from cache_server.entries import Entries, open_layered
from cache_server.entries.databases import parse_url
from cache_server.entries.shared import check_redis_url
from cache_server.executions import Executions
from cache_server.identity import Identifier
from cache_server.pods import SELECTOR, Pods
from cache_server.recorder import Recorder
from cache_server.settings import Settings
from cache_server.sweeper import Sweeper
from cache_server.waiting import WaitRules
from cache_server.webhook import build_webhook, holding
from memopod.kube import PODS, Client, Informer, LeaderElector, LeaseWatcher
from memopod.service import Health, configure_logs, parse, run
from memopod.steps.key import KeyRules
from memopod.steps.staleness import parse_duration

_log = structlog.get_logger()
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
        context = server_context(settings.tls_cert_file, settings.tls_key_file)
        artifacts = Artifacts.from_settings(settings.object_store)
        parse_url(settings.database)
        if settings.redis:
            check_redis_url(settings.redis)
    except (ValueError, OSError) as error:
        print(f"memopod cache-server: {error}", file=sys.stderr)
        return 2
    return run(lambda stop: _serve(settings, rules, context, artifacts, stop))


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
        audit_rate=settings.audit_rate,
    )


def _limit(flag: str, text: str) -> float | None:
    if not text:
        return None
    seconds = parse_duration(text)
    if seconds is None:
        raise ValueError(f"{flag}: expected an ISO 8601 duration such as P30D, got {text!r}")
    return None if seconds < 0 else seconds


def _wire(
    settings: Settings, rules: DecisionRules, artifacts: Artifacts, client: Client, entries: Entries,
    elector: LeaderElector, identity: str,
) -> Pods:  # fmt: skip
    key_rules = _key_rules(settings)
    identifier = Identifier(client, artifacts, entries, key_rules)
    decider = Decider(identifier, entries, artifacts, rules)
    leads = elector.is_leader
    controller = Controller(
        client, decider, entries, Executions(_wait_rules(settings)), leads=leads,
        settle_time=settings.settle_time, late_margin=settings.late_margin, concurrency=settings.concurrency,
    )  # fmt: skip
    return Pods(
        controller,
        Recorder(
            client, identifier, entries, artifacts, decider, key_rules,
            leads=leads, concurrency=settings.concurrency,
            on_end=lambda pod, entry: controller.recorded(pod, entry=entry),
        ),
        Sweeper(client, identity=identity, claim_wait=settings.claim_wait),
    )  # fmt: skip


def _key_rules(settings: Settings) -> KeyRules:
    return KeyRules(ignored_containers=frozenset(settings.ignored_sidecars))


def _wait_rules(settings: Settings) -> WaitRules:
    return WaitRules(scope=settings.coalesce, longest=settings.coalesce_longest, most=settings.coalesce_most)


async def _serve(
    settings: Settings, rules: DecisionRules, context: ssl.SSLContext, artifacts: Artifacts,
    stop: asyncio.Event,
) -> None:  # fmt: skip
    files = settings.tls_cert_file, settings.tls_key_file
    policy = Policy(
        secret=rules.secret,
        trusted_creators=frozenset(settings.trusted_creators),
        hold_seconds=settings.hold_timeout,
        rules=_key_rules(settings),
    )
    identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    place = settings.lease_namespace, settings.lease_name
    async with (
        Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-cache") as client,
        open_layered(settings.database, redis=settings.redis) as entries,
        asyncio.TaskGroup() as group,
    ):
        elector = LeaderElector(client, namespace=place[0], name=place[1], identity=identity)
        lease = LeaseWatcher(client, *place)
        pods = _wire(settings, rules, artifacts, client, entries, elector, identity)
        informer = Informer(
            client, PODS, namespace=settings.watch_namespace or None,
            label_selector=SELECTOR, on_event=pods.on_event,
        )  # fmt: skip
        health = Health({"pods": informer.synced.is_set, "leader": lease.fresh})
        runner = web.AppRunner(
            build_webhook(holding(policy, lambda: lease.fresh() and not pods.stuck.is_set())), access_log=None
        )
        watching = [
            group.create_task(informer.run(), name="informer:pods"),
            group.create_task(lease.run(), name="informer:lease"),
            group.create_task(pods.look_regularly(informer), name="look"),
            group.create_task(reload_on_change(context, *files), name="certificate"),
        ]
        leading = group.create_task(pods.lead(informer, elector), name="leader")
        port = await _listen(runner, settings, context)
        health_port = await health.start(settings.health_host, settings.health_port)
        _log.info("serving", port=port, health_port=health_port)
        await stop.wait()
        # No new Pods, then no new decisions, then the decisions under way, then the Lease.
        await runner.cleanup()
        for task in watching:
            task.cancel()
        await pods.drain()
        leading.cancel()
        await health.stop()
    _log.info("stopped")


async def _listen(runner: web.AppRunner, settings: Settings, context: ssl.SSLContext) -> int:
    await runner.setup()
    site = web.TCPSite(runner, settings.listen_host, settings.listen_port, ssl_context=context)
    await site.start()
    return int(runner.addresses[0][1])
