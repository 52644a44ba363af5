"""What the settings mean: the rules that webhook, controller and recorder are given."""

import dataclasses
import hashlib
import hmac
from datetime import timedelta
from pathlib import Path

import structlog

from cache_server.admission import Policy
from cache_server.decision import DecisionRules
from cache_server.entries.databases import parse_url
from cache_server.entries.retention import Limits, span
from cache_server.own_certificates import Place
from cache_server.placeholder import PlaceholderRules
from cache_server.settings import AUTO, GATE, OWN, PLACEHOLDER, Settings
from cache_server.upstream import CERTIFICATES
from cache_server.waiting import WaitRules
from memopod.steps.key import KeyRules
from memopod.steps.staleness import StalenessRules, parse_duration

_log = structlog.get_logger()
_SECRET_BYTES = 32


def resolve(settings: Settings) -> Settings:
    """The settings with all that is `auto`, or given in Kubeflow's words, decided.

    A command line for Kubeflow's cache server means its way of working: the placeholder mode, alone.
    Says which flags have no meaning, each once. Raises ValueError.
    """
    upstream = settings.is_upstream
    strategy = settings.strategy
    if strategy == AUTO:
        strategy = PLACEHOLDER if upstream else GATE
    elects = not upstream if settings.leader_election is None else settings.leader_election
    if not elects and strategy != PLACEHOLDER:
        raise ValueError("--leader-election: expected true, or --strategy=placeholder and one replica")
    for flag, why in settings.without_meaning():
        _log.warning("flag without meaning", flag=flag, why=why)
    resolved = dataclasses.replace(
        settings,
        strategy=strategy,
        leader_election=elects,
        watch_namespace=settings.watch_namespace or _watched_by_upstream(settings),
        database=settings.database or (settings.database_url() if upstream else ""),
        tls_cert_file=_in_folder(settings.tls_cert_file),
        tls_key_file=_in_folder(settings.tls_key_file),
    )
    retention_limits(resolved)
    parse_url(resolved.database)
    if resolved.redis:
        from cache_server.entries.shared import check_redis_url  # takes a while to load

        check_redis_url(resolved.redis)
    return resolved


def _watched_by_upstream(settings: Settings) -> str:
    """Kubeflow's server watches its own namespace by default; one that is told a strategy is memopod's."""
    return settings.upstream_namespace if settings.strategy == AUTO else settings.namespace_to_watch or ""


def _in_folder(file: str) -> str:
    """Kubeflow's server takes names of files in a fixed folder."""
    return file if "/" in file else f"{CERTIFICATES}/{file}"


def seal_secret(settings: Settings) -> bytes:
    """The secret that seals keys; empty if it is in the Secret of `--certificates=own`.

    Raises OSError or ValueError with what to do about it.

    Kubeflow's manifest has no such file; the one replica derives it from the key of its certificate. A
    renewed key breaks the seals of Pods that were admitted before a restart: those are not recorded.
    """
    path = settings.seal_key_file
    if not path and settings.certificates == OWN:
        return b""
    if not path and settings.is_upstream:
        key = Path(settings.tls_key_file).read_bytes()
        return hmac.digest(b"memopod-seal-from-key", key, hashlib.sha256)
    if not path:
        raise ValueError("--seal-key-file is missing: a file with 32 random bytes or more")
    secret = Path(path).read_bytes()
    if len(secret) < _SECRET_BYTES:
        raise ValueError(f"--seal-key-file {path}: expected {_SECRET_BYTES} bytes or more, got {len(secret)}")
    return secret


def retention_limits(settings: Settings) -> Limits:
    """How long entries are kept. Raises ValueError for a duration that is none."""

    def duration(flag: str, text: str) -> timedelta | None:
        seconds = _limit(flag, text)
        return None if seconds is None else span(seconds)

    return Limits(
        age=duration("--retention-age", settings.retention_age),
        idle=duration("--retention-idle", settings.retention_idle),
        number=settings.retention_number or None,
    )


def decision_rules(settings: Settings, secret: bytes) -> DecisionRules:
    """What a decision needs to know. Raises ValueError for a duration that is none."""
    check = settings.artifact_check
    if check == "auto":
        check = "require" if settings.object_store else "off"
    return DecisionRules(
        secret=secret,
        check=check,
        timeout=settings.decision_timeout,
        staleness=StalenessRules(
            default=_limit("--default-staleness", settings.default_staleness),
            maximum=_limit("--maximum-staleness", settings.maximum_staleness),
            mutable_tag=_limit("--mutable-tag-max-staleness", settings.mutable_tag_max_staleness),
        ),
        ignored_containers=frozenset(settings.ignored_sidecars),
        audit_rate=settings.audit_rate,
        check_memory=settings.artifact_memory,
    )


def _limit(flag: str, text: str) -> float | None:
    if not text:
        return None
    seconds = parse_duration(text)
    if seconds is None:
        raise ValueError(f"{flag}: expected an ISO 8601 duration such as P30D, got {text!r}")
    return None if seconds < 0 else seconds


def admission_policy(settings: Settings, secret: bytes) -> Policy:
    """What the webhook needs to know."""
    return Policy(
        secret=secret,
        trusted_creators=frozenset(settings.trusted_creators),
        hold_seconds=settings.hold_timeout,
        rules=key_rules(settings),
    )


def key_rules(settings: Settings) -> KeyRules:
    """What the cluster changes about keys."""
    return KeyRules(ignored_containers=frozenset(settings.ignored_sidecars))


def wait_rules(settings: Settings) -> WaitRules:
    """Who waits for an identical step that runs."""
    return WaitRules(scope=settings.coalesce, longest=settings.coalesce_longest, most=settings.coalesce_most)


def certificate_place(settings: Settings) -> Place:
    """Where the webhook's own certificates are, and for which names."""
    service = f"cache-server.{settings.lease_namespace}"
    names = settings.certificate_names or (
        f"{service}.svc", service, f"{service}.svc.cluster.local", "cache-server",
    )  # fmt: skip
    return Place(
        namespace=settings.lease_namespace,
        secret=settings.certificate_secret,
        configuration=settings.webhook_configuration,
        names=names,
    )


def placeholder_rules(settings: Settings) -> PlaceholderRules:
    """What placeholder mode needs to know."""
    return PlaceholderRules(
        image=settings.cache_image,
        keeps_node_restrictions=settings.cache_node_restrictions,
        timeout=settings.lookup_timeout,
    )
