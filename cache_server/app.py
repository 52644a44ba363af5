"""The cache server's process: what is started, in which order, and how it ends."""

import asyncio
import socket
import uuid
from collections.abc import Callable
from dataclasses import replace

import structlog

from cache_server import configuration
from cache_server.api.service import check_api, serving_api
from cache_server.artifacts import Artifacts
from cache_server.authority import Lifetimes
from cache_server.certificates import FileCertificates
from cache_server.completion import Completer, ResultsPermission
from cache_server.controller import Controller
from cache_server.decision import Decider, DecisionRules
from cache_server.entries import Entries, open_layered
from cache_server.entries.counts import Counts
from cache_server.entries.creation import ensure_database
from cache_server.entries.retention import keep_within
from cache_server.executions import Executions
from cache_server.leadership import leadership
from cache_server.namespace_stores import for_namespaces
from cache_server.own_certificates import OwnCertificates
from cache_server.pods import SELECTOR, Pods
from cache_server.recorder import Recorder
from cache_server.serving import connect, listen, make_decider, make_judge
from cache_server.settings import OWN, PLACEHOLDER, Settings
from cache_server.store_probe import ask_regularly
from cache_server.sweeper import Sweeper
from cache_server.workers import Workers
from memopod.kube import PODS, Client, Informer
from memopod.service import Health, Serve, start

_log = structlog.get_logger()


def main(argv: list[str] | None = None) -> int:
    """Run the cache server. Returns the exit status."""
    return start(
        Settings, argv, _prepare,
        prog="memopod cache-server", component="cache-server", prefix="MEMOPOD_CACHE",
        description="Admission webhook and controller: hold repeated steps, and finish them without a Pod.",
    )  # fmt: skip


def _prepare(given: Settings) -> Serve:
    settings = configuration.resolve(given)
    check_api(settings)
    rules = configuration.decision_rules(settings, configuration.seal_secret(settings))
    files = None if settings.certificates == OWN else _files(settings)
    artifacts = Artifacts.from_settings(settings.object_store)
    return lambda stop: _serve(settings, rules, files, artifacts, stop)


def _wire(
    settings: Settings, rules: DecisionRules, artifacts: Artifacts, client: Client, entries: Entries,
    leads: Callable[[], bool], identity: str, counts: Counts,
) -> tuple[Decider, Pods]:  # fmt: skip
    artifacts = for_namespaces(artifacts, client)
    identifier, decider = make_decider(settings, rules, artifacts, client, entries)
    controller = Controller(
        client, decider, entries, Executions(configuration.wait_rules(settings)), leads=leads,
        settle_time=settings.settle_time, late_margin=settings.late_margin, concurrency=settings.concurrency,
        count=counts.add,
    )  # fmt: skip
    completer = Completer(
        client, entries, secret=rules.secret, leads=leads, concurrency=settings.concurrency, count=counts.add
    )

    return decider, Pods(
        controller,
        Recorder(
            client, identifier, entries, artifacts, decider, configuration.key_rules(settings),
            leads=leads, concurrency=settings.concurrency,
            on_end=lambda pod, entry: controller.recorded(pod, entry=entry),
            on_recorded=completer.recorded,
        ),
        completer,
        Sweeper(client, identity=identity, claim_wait=settings.claim_wait),
    )  # fmt: skip


async def _serve(
    settings: Settings, rules: DecisionRules, files: FileCertificates | None, artifacts: Artifacts,
    stop: asyncio.Event,
) -> None:  # fmt: skip
    identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    if settings.is_upstream:
        await ensure_database(settings.database)
    async with (
        Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-cache") as client,
        # Connections of its own: however many writes wait for one, the Lease is renewed.
        Client.from_kubeconfig(settings.kubeconfig or None, user_agent="memopod-cache-lease") as lease_client,
        open_layered(settings.database, redis=settings.redis) as entries,
        asyncio.TaskGroup() as group,
    ):
        certificates, rules = await _certificates(settings, rules, files, client)
        elector, heartbeat = leadership(
            lease_client, elects=bool(settings.leader_election), namespace=settings.lease_namespace,
            name=settings.lease_name, identity=identity,
        )  # fmt: skip
        leads, database = elector.is_leader, entries.sql.database
        counts = Counts(database)
        decider, pods = _wire(settings, rules, artifacts, client, entries, leads, identity, counts)
        results = ResultsPermission(client, settings.watch_namespace, wanted=settings.strategy == PLACEHOLDER)
        informer = Informer(
            client, PODS, namespace=settings.watch_namespace or None,
            label_selector=SELECTOR, on_event=pods.on_event,
        )  # fmt: skip

        def controller_alive() -> bool:
            return heartbeat.fresh() and not pods.stuck.is_set()

        def can_complete() -> bool:
            return results.granted and controller_alive()

        judge = make_judge(
            settings, configuration.admission_policy(settings, rules.secret), decider,
            alive=controller_alive, can_complete=can_complete, count=counts.add,
        )  # fmt: skip
        watching = [
            group.create_task(informer.run(), name="informer:pods"),
            group.create_task(heartbeat.run(), name="heartbeat"),
            group.create_task(results.ask(), name="permission"),
            group.create_task(pods.look_regularly(informer), name="look"),
            group.create_task(certificates.keep(elector.is_leader), name="certificates"),
        ]
        limits, interval = configuration.retention_limits(settings), settings.retention_interval
        upkeep = [
            group.create_task(counts.write_regularly(), name="counts"),
            group.create_task(ask_regularly(artifacts), name="object stores"),
            group.create_task(
                keep_within(database, limits, leads=leads, interval=interval), name="retention"
            ),
        ]
        leading = group.create_task(pods.lead(informer, elector), name="leader")
        await connect(settings, database)
        runner, port = await listen(settings, judge, certificates.context, settings.listen_port)
        workers = Workers(settings, rules, port)
        watching.append(group.create_task(workers.run(controller_alive, can_complete), name="workers"))
        health = Health(
            {"pods": informer.synced.is_set, "leader": heartbeat.fresh, "processes": workers.ready}
        )
        health_port = await health.start(settings.health_host, settings.health_port)
        async with serving_api(settings, client, database, certificates.context) as api_port:
            _log.info("serving", port=port, health_port=health_port, api_port=api_port)
            await stop.wait()
        # No new Pods, then no new decisions, then the decisions under way, then the Lease.
        await asyncio.gather(runner.cleanup(), workers.stop())
        for task in watching:
            task.cancel()
        await pods.drain()
        for task in upkeep:
            task.cancel()
        leading.cancel()
        await health.stop()
    _log.info("stopped")


def _files(settings: Settings) -> FileCertificates:
    return FileCertificates(settings.tls_cert_file, settings.tls_key_file)


async def _certificates(
    settings: Settings, rules: DecisionRules, files: FileCertificates | None, client: Client
) -> tuple[FileCertificates | OwnCertificates, DecisionRules]:
    """What the webhook serves with, and the rules with the secret that lies beside it, if it does."""
    if files is not None:
        return files, rules
    own = OwnCertificates(client, configuration.certificate_place(settings), Lifetimes())
    material = await own.obtain()
    return own, replace(rules, secret=rules.secret or material.seal_key)
