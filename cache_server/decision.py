"""The decision for one held Pod: reuse an entry, or run, and why. Reads, and writes nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from cache_server.artifacts import Artifacts, ArtifactStoreUnavailable, unchanged
from cache_server.audit import audit_key, is_audited
from cache_server.checks import Checks
from cache_server.entries import Entries, EntriesUnavailable, Entry
from cache_server.entries.imported import ImportedEntries, stands_for
from cache_server.identity import Identifier
from cache_server.namespaces import Namespaces
from memopod.kube import ApiError
from memopod.steps import NotAStep, OutputArtifact, OutputsMismatch, Step, names, read_step
from memopod.steps.identity import Identity
from memopod.steps.images import mutable_images
from memopod.steps.key import Key, Unkeyable
from memopod.steps.outputs import fill_declared
from memopod.steps.seal import is_sealed
from memopod.steps.staleness import StalenessRules, effective, is_fresh, requested
from memopod.steps.times import from_text

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Finish the Pod with these outputs (Argo's shape) of this entry."""

    step: Step
    entry: Entry
    outputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Let the step run. `reason` is a slug; `identity` is who the step is, if that is known.

    `audits` is the entry that could be reused, where the step runs to be compared with it; `gone` the one
    whose outputs were found gone or changed.
    """

    reason: str
    identity: Identity | None = None
    audits: str | None = None
    gone: str | None = None

    @property
    def evidence(self) -> str | None:
        """What the step can read now."""
        return self.identity.evidence if self.identity else None

    @property
    def key(self) -> str | None:
        """The step's entry key."""
        return self.identity.key.digest if self.identity else None

    @property
    def step(self) -> Step | None:
        """The step with its whole template."""
        return self.identity.step if self.identity else None


Decision = Reuse | Run


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRules:
    """What a cluster sets. Times are seconds; None is no limit."""

    secret: bytes
    check: str
    timeout: float
    staleness: StalenessRules = StalenessRules()  # noqa: RUF009 (frozen)
    ignored_containers: frozenset[str] = frozenset()
    audit_rate: float = 0.0
    check_memory: float = 0.0


class Decider:
    """Decides for held Pods, each within the deadline of its rules, and never raises for one of them."""

    def __init__(
        self, identifier: Identifier, entries: Entries, artifacts: Artifacts, namespaces: Namespaces,
        rules: DecisionRules,
    ) -> None:  # fmt: skip
        self._identifier = identifier
        self._entries = entries
        self._imported = ImportedEntries(entries)
        self._artifacts = artifacts
        self._checks = Checks(rules.check_memory)
        self._namespaces = namespaces
        self._rules = rules

    async def decide(self, pod: Mapping[str, Any]) -> Decision:
        """Decide for one held Pod. When in doubt, it runs."""
        name = str(pod["metadata"].get("name"))

        async def work(known: list[Identity]) -> Decision:
            return await self._retire_gone(await self._decide(pod, known))

        return await self._in_time(name, self._rules.timeout, work)

    async def look_up(
        self, step: Step, *, timeout: float, fingerprint: str | None, base: Key | None = None,  # noqa: ASYNC109
        dry_run: bool = False,
    ) -> Decision:  # fmt: skip
        """Decide at admission, within `timeout` seconds: by the step's own entry, else by one that was
        imported under Kubeflow's `fingerprint`. `base` is the step's base key, if it is at hand. A dry run
        leaves no trace. When in doubt, the step runs.
        """

        async def work(known: list[Identity]) -> Decision:
            decision = await self._look_up(step, known, base)
            if isinstance(decision, Run) and decision.reason == "miss" and fingerprint is not None:
                imported = await self._imported.find(step.namespace, fingerprint)
                if imported is not None and stands_for(imported, known[0]):
                    decision = await self._weigh(known[0], imported)
            return decision if dry_run else await self._retire_gone(decision)

        return await self._in_time(step.pod_name, timeout, work)

    async def _retire_gone(self, decision: Decision) -> Decision:
        """Take the entry back whose outputs were found gone or changed."""
        if isinstance(decision, Run) and decision.gone is not None:
            await self._entries.retire(decision.gone, "outputs-gone")
        return decision

    async def _in_time(
        self,
        pod: str,
        timeout: float,  # noqa: ASYNC109
        work: Callable[[list[Identity]], Awaitable[Decision]],
    ) -> Decision:
        """What `work(known)` decides, or why nothing was decided; `known` gets who the step is."""
        known: list[Identity] = []
        try:
            async with asyncio.timeout(timeout):
                return await work(known)
        except (NotAStep, Unkeyable) as error:
            return Run(reason=error.reason)
        except TimeoutError:
            reason = "decision-timeout"
        except EntriesUnavailable:
            reason = "entries-unavailable"
        except ArtifactStoreUnavailable:
            reason = "outputs-unchecked" if known else "input-unknown"
        except ApiError:
            reason = "kubernetes-unavailable"
        except Exception:  # noqa: BLE001 (logged with its traceback, and the step runs)
            # A step that nobody thought of must not be the reason that it waits.
            _log.exception("cannot decide", pod=pod)
            reason = "internal-error"
        return Run(reason=reason, identity=known[0] if known else None)

    async def _decide(self, pod: Mapping[str, Any], known: list[Identity]) -> Decision:
        step = read_step(pod)
        if not self.is_sealed(step):
            return Run(reason="seal-invalid")
        return await self._look_up(step, known)

    async def _look_up(self, step: Step, known: list[Identity], base: Key | None = None) -> Decision:
        identity = await self._identifier.identify(step, patient=True, base=base)
        known.append(identity)
        entry = await self._entries.find(step.namespace, identity.key.digest)
        return await self._weigh(identity, entry)

    async def _weigh(self, identity: Identity, entry: Entry | None) -> Decision:
        settings = await self._namespaces.annotations(identity.step.namespace)
        if settings is None:
            return Run(reason="namespace-unreadable", identity=identity)
        reason = self._unfit(identity.step, entry, self._rules.staleness.within(settings))
        if entry is None or reason:
            return Run(reason=reason or "miss", identity=identity)
        return await self._reuse(identity, entry)

    def is_sealed(self, step: Step) -> bool:
        """Whether the Pod's seal is valid: our webhook marked it when it was created."""
        key = step.annotations.get(names.KEY, "")
        created = from_text(step.pod["metadata"].get("creationTimestamp"))
        seal = step.annotations.get(names.SEAL)
        return created is not None and is_sealed(self._rules.secret, step, key, seal, created.timestamp())

    def audit_key(self, namespace: str) -> bytes:
        """See `audit.audit_key`."""
        return audit_key(self._rules.secret, namespace)

    def _unfit(self, step: Step, entry: Entry | None, rules: StalenessRules) -> str | None:
        """Why no entry may be reused: none there, too old, or reuse disabled."""
        limit = effective(requested(step.annotations), default=rules.default, cap=rules.maximum)
        if limit == 0:
            return "disabled"
        if entry is None:
            return "miss"
        age = (datetime.now(UTC) - entry.finished_at).total_seconds()
        if not is_fresh(age, limit, entry.max_staleness_seconds):
            return "stale"
        if not is_fresh(age, rules.mutable_tag) and mutable_images(step, self._rules.ignored_containers):
            return "tag-stale"
        return None

    async def _reuse(self, identity: Identity, entry: Entry) -> Decision:
        step = identity.step
        try:
            outputs = fill_declared(step, entry.outputs)
        except OutputsMismatch:
            return Run(reason="outputs-mismatch", identity=identity)
        reason = await self._check(step, entry)
        if reason:
            gone = entry.id if reason == "outputs-gone" else None
            return Run(reason=reason, identity=identity, gone=gone)
        if is_audited(step.pod_uid or step.execution, self._rules.audit_rate):
            return Run(reason="audit", identity=identity, audits=entry.id)
        return Reuse(step=step, entry=entry, outputs=outputs)

    async def _check(self, step: Step, entry: Entry) -> str | None:
        """Ask the object stores whether all outputs are there, unchanged; a slug if they are not."""
        if self._rules.check == "off" or not entry.outputs.artifacts:
            return None
        artifacts = await self._artifacts.within(step)
        found = await asyncio.gather(
            *(self._look(a, artifacts, step.namespace) for a in entry.outputs.artifacts)
        )
        if "outputs-gone" in found:
            return "outputs-gone"
        return "outputs-unchecked" if "outputs-unchecked" in found else None

    async def _look(self, artifact: OutputArtifact, artifacts: Artifacts, namespace: str) -> str | None:
        """Why this output stands in the way of a reuse, None if it does not."""
        unchecked = "outputs-unchecked" if self._rules.check == "require" else None
        # What was recorded while nobody could ask about it, or imported, can be found gone, not unchanged.
        comparable = artifact.etag is not None or artifact.digest is not None
        if unchecked and not comparable:
            return unchecked
        try:
            state = await self._checks.describe(artifacts, namespace, artifact.location)
        except ArtifactStoreUnavailable:
            return unchecked
        found = unchanged(artifact, state) if comparable else state is not None
        return None if found else "outputs-gone"
