"""The HTTP API for people: look at entries, keep them, take them back. Never on the way of a step.

`EntriesApi` serves it on a port of its own, over TLS, to whoever `authorization` lets in. `openapi.json`
describes it, and is served under that name.
"""

from cache_server.api.authorization import Authorizer, KubernetesTokens, TokenFile
from cache_server.api.server import EntriesApi

__all__ = ["Authorizer", "EntriesApi", "KubernetesTokens", "TokenFile"]
