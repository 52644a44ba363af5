"""How a process answers for the webhook: its judge, its port, its memory."""

import gc
import ssl
from collections.abc import Callable

import structlog
from aiohttp import web

from cache_server import configuration
from cache_server.admission import Policy
from cache_server.artifacts import Artifacts
from cache_server.certificates import require_clients
from cache_server.decision import Decider, DecisionRules
from cache_server.entries import Entries, EntriesUnavailable
from cache_server.entries.calls import Database
from cache_server.identity import Identifier
from cache_server.namespaces import Namespaces
from cache_server.placeholder import placeholders
from cache_server.settings import PLACEHOLDER, Settings
from cache_server.webhook import Judge, build_webhook, holding
from memopod.kube import Client

_log = structlog.get_logger()
_DRAIN_SECONDS = 10.0
"""For requests under way when the server stops: the API server waits for less."""
_YOUNG_OBJECTS = 20_000
"""Objects made between two looks of the collector at the young ones. A review makes a thousand, and none of
them is in a cycle: Python's default of 700 looks once or twice in each request, for nothing."""


def make_decider(
    settings: Settings, rules: DecisionRules, artifacts: Artifacts, client: Client, entries: Entries
) -> tuple[Identifier, Decider]:
    """Who tells steps apart, and who decides about them."""
    identifier = Identifier(client, artifacts, entries, configuration.key_rules(settings))
    # Kubeflow's account may not read Namespaces, and its server knows no annotations of theirs.
    namespaces = Namespaces(client, needed=not settings.is_upstream)
    return identifier, Decider(identifier, entries, artifacts, namespaces, rules)


def make_judge(
    settings: Settings, policy: Policy, decider: Decider | None, *,
    alive: Callable[[], bool], can_complete: Callable[[], bool],
    count: Callable[..., None] | None = None,
) -> Judge:  # fmt: skip
    """The judge of the strategy. `decider` is needed for placeholder mode only."""
    if settings.strategy != PLACEHOLDER:
        return holding(policy, alive)
    assert decider is not None, "placeholder mode decides at admission"
    return placeholders(policy, decider, can_complete, configuration.placeholder_rules(settings), count=count)


async def connect(settings: Settings, database: Database) -> None:
    """Placeholder mode looks entries up at admission: the first steps are not to wait for connections."""
    if settings.strategy != PLACEHOLDER:
        return
    try:
        await database.connect()
    except EntriesUnavailable as error:
        _log.warning("steps run as they are while the database does not answer", cause=str(error))


async def listen(
    settings: Settings, judge: Judge, context: ssl.SSLContext, port: int
) -> tuple[web.AppRunner, int]:
    """Serve the webhook; returns what ends it, and the port. Raises OSError for a port in use.

    Where several processes answer, the kernel spreads connections over them (SO_REUSEPORT).
    """
    if settings.client_ca:
        require_clients(context, settings.client_ca)
    runner = web.AppRunner(
        build_webhook(judge, settings.client_names), access_log=None, shutdown_timeout=_DRAIN_SECONDS
    )
    await runner.setup()
    site = web.TCPSite(
        runner, settings.listen_host, port, ssl_context=context, reuse_port=settings.processes > 1
    )
    await site.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
    return runner, int(runner.addresses[0][1])
