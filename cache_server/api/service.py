"""Starts the API where the settings ask for it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cache_server.api.authorization import Authorizer, FirstThatKnows, KubernetesTokens, TokenFile
from cache_server.api.server import EntriesApi
from cache_server.certificates import new_context
from cache_server.entries.calls import Database
from cache_server.entries.catalog import Catalog
from cache_server.settings import Settings
from memopod.kube import Client

_CALL_SECONDS = 10.0
"""Deadline of one question to the database: people wait longer than Pods."""


def check_api(settings: Settings) -> None:
    """Raise ValueError or OSError for settings of the API that do not fit each other."""
    if settings.api_port is None:
        return
    if not settings.api_token_file and not settings.api_kubernetes:
        raise ValueError("--api-port: expected --api-token-file or --api-kubernetes: somebody must be let in")
    if settings.api_token_file:
        TokenFile(settings.api_token_file)


@asynccontextmanager
async def serving_api(
    settings: Settings, client: Client, database: Database, context: ssl.SSLContext
) -> AsyncIterator[int | None]:
    """Serve the API while the context lasts; its port, None where no API is wanted."""
    if settings.api_port is None:
        yield None
        return
    authorizers: list[Authorizer] = []
    if settings.api_token_file:
        authorizers.append(TokenFile(settings.api_token_file))
    if settings.api_kubernetes:
        authorizers.append(KubernetesTokens(client))
    api = EntriesApi(Catalog(database.patient(_CALL_SECONDS)), FirstThatKnows(authorizers))
    port = await api.start(settings.api_host, settings.api_port, sharing_certificate(context))
    try:
        yield port
    finally:
        await api.stop()


def sharing_certificate(context: ssl.SSLContext) -> ssl.SSLContext:
    """A context that always shows the certificate of another, but asks no client for one.

    A connection's certificate is that of its context at the time of the handshake, whatever client
    certificates the webhook's connections need.
    """

    def take(connection: ssl.SSLObject, _name: str | None, _own: ssl.SSLContext) -> None:
        connection.context = context

    own = new_context()
    own.sni_callback = take
    return own
