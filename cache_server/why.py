"""Why a step ran: the nearest earlier entry of its template, and what differs from it.

Reads the Pod and, where it still exists, the Pod of the earlier run; and the entries, wherever they are.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cache_server.entries.candidates import Candidate, Earlier
from memopod.kube import PODS, ApiError, Client, NotFound
from memopod.steps import NotAStep, names, read_step
from memopod.steps.components import base_components
from memopod.steps.explain import Cause, causes, nearest, split
from memopod.steps.key import KEY_VERSION, KeyRules, Unkeyable, base_key
from memopod.steps.reasons import REFUSALS, SENTENCES
from memopod.steps.shown import shown
from memopod.steps.times import from_text

Pod = Mapping[str, Any]
_ASKED_FOR = ("configmap.", "input.", "ignored-inputs", "offloaded.args")
"""Components of an entry key that its base key lacks."""


class Unknown(LookupError):
    """There is nothing of that name to explain. The message says what was looked for, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A cause, with what it was and what it is, where that may be said."""

    cause: Cause
    old: str | None = None
    new: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What was decided for a step and why, and how it differs from the nearest earlier entry.

    `decision` and `reason` are empty for a step that nobody decided for, and for a key. `whole` says
    whether the parts of the entry key are known, and not only those of the base key.
    """

    namespace: str
    pod: str
    template: str
    decision: str
    reason: str
    key: str
    entry: str | None
    source_pod: str | None
    waits_for: str | None
    source_logs: str | None
    nearest: Candidate | None
    differences: Sequence[Difference]
    whole: bool

    @property
    def sentence(self) -> str:
        """What the reason means."""
        return SENTENCES.get(self.reason, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is explained, from a Pod or an entry."""

    namespace: str
    pod: str
    pod_uid: str
    template: str
    key: str
    key_version: int
    components: Mapping[str, str]
    whole: bool
    own: Candidate | None = None
    started: datetime | None = None
    annotations: Mapping[str, str]


class Why:
    """Explains steps by their Pod or key. `client` is None where no cluster can be asked."""

    def __init__(self, entries: Earlier, client: Client | None, rules: KeyRules = KeyRules()) -> None:  # noqa: B008
        self._entries = entries
        self._client = client
        self._rules = rules

    async def pod(self, namespace: str, name: str) -> Explanation:
        """Explain the step of a Pod; of one that is gone, by the entry that it left.

        Raises Unknown, ApiError or EntriesUnavailable.
        """
        pod = await self._pod(namespace, name)
        if pod is not None:
            return await self._explain(self._of_pod(pod), pod)
        left = await self._entries.of_pod(namespace, name)
        if not left:
            raise Unknown(f"there is no Pod {name} in namespace {namespace}, and no entry of one")
        return await self._explain(_of_entry(left[0]), None)

    async def key(self, key: str, namespace: str | None = None) -> Explanation:
        """Explain the entry with that key, the newest of all namespaces if none is named.

        Raises Unknown, ApiError or EntriesUnavailable.
        """
        found = await self._entries.of_key(key, namespace=namespace)
        if not found:
            where = f" in namespace {namespace}" if namespace else ""
            raise Unknown(f"no entry has this key{where}; of a step that left none, ask by its Pod's name")
        own = found[0]
        return await self._explain(_of_entry(own), await self._same_pod(own))

    def _of_pod(self, pod: Pod) -> _Subject:
        metadata = pod["metadata"]
        annotations: Mapping[str, str] = metadata.get("annotations") or {}
        try:
            step = read_step(pod)
            template = step.template_name
        except NotAStep as error:
            raise Unknown(f"Pod {metadata['name']} is no step's: {error}") from error
        stored = _stored(annotations)
        key = annotations.get(names.ENTRY_KEY) or annotations.get(names.KEY, "")
        if stored is None:
            try:
                base = base_key(step, self._rules)
            except Unkeyable as error:
                annotations = {names.REASON: error.reason, names.DECISION: names.RUN, **annotations}
                stored = {}
            else:
                stored, key = base.components, key or base.digest
        return _Subject(
            namespace=metadata.get("namespace", ""), pod=metadata["name"], pod_uid=metadata.get("uid", ""),
            template=template, key=key, key_version=KEY_VERSION, components=stored,
            whole=names.COMPONENTS in annotations, annotations=annotations, started=_started(pod),
        )  # fmt: skip

    async def _explain(self, subject: _Subject, pod: Pod | None) -> Explanation:
        marks = subject.annotations
        entry, source = marks.get(names.ENTRY), marks.get(names.SOURCE_POD)
        chosen = None if entry or not subject.components else await self._nearest(subject)
        differences = await self._differences(subject, pod, chosen) if chosen else ()
        if differences and marks.get(names.REASON) in REFUSALS:
            # An entry had its key, and its own run has replaced that one: another one explains nothing.
            chosen, differences = None, ()
        return Explanation(
            namespace=subject.namespace, pod=subject.pod, template=subject.template, key=subject.key,
            decision=marks.get(names.DECISION, ""), reason=marks.get(names.REASON, ""),
            entry=entry or (subject.own.id if subject.own else None), source_pod=source,
            source_logs=marks.get(names.SOURCE_LOGS), nearest=chosen,
            waits_for=None if names.DECISION in marks else marks.get(names.WAITS_FOR),
            differences=differences,
            whole=subject.whole,
        )  # fmt: skip

    async def _nearest(self, subject: _Subject) -> Candidate | None:
        before = subject.own.finished_at if subject.own else subject.started
        found = await self._entries.of_template(subject.namespace, subject.template, before=before)
        # Neither is what the Pod itself has left an earlier run.
        earlier = [c for c in found if c.pod_uid != subject.pod_uid]
        return nearest_of(earlier, subject.components, whole=subject.whole)

    async def _differences(
        self, subject: _Subject, pod: Pod | None, chosen: Candidate
    ) -> Sequence[Difference]:
        if chosen.key_version != subject.key_version:
            rules = Cause(subject="version of the key's rules", change="changed", components=())
            return [Difference(cause=rules, old=str(chosen.key_version), new=str(subject.key_version))]
        found = causes(_comparable(chosen, whole=subject.whole), subject.components)
        if not found:
            return ()
        old, new = self._values(await self._same_pod(chosen)), self._values(pod)
        return [_difference(cause, old, new, chosen) for cause in found]

    def _values(self, pod: Pod | None) -> Mapping[str, Any] | None:
        """The components of a Pod's step by value; None if it is gone."""
        if pod is None:
            return None
        try:
            return base_components(read_step(pod), self._rules.ignored_containers)
        except NotAStep:
            return None

    async def _same_pod(self, candidate: Candidate) -> Pod | None:
        """The Pod that left an entry, if it is still there, and not another one of its name.

        It only has values to show, so whatever stands in the way means that there are none.
        """
        try:
            pod = await self._pod(candidate.namespace, candidate.pod_name)
        except ApiError:
            return None
        return pod if pod is not None and pod["metadata"].get("uid") == candidate.pod_uid else None

    async def _pod(self, namespace: str, name: str) -> Pod | None:
        if self._client is None:
            return None
        try:
            return await self._client.get(PODS, name, namespace=namespace)
        except NotFound:
            return None


def nearest_of(
    candidates: Sequence[Candidate], components: Mapping[str, str], *, whole: bool
) -> Candidate | None:
    """The candidate that differs least from a step, the newest of equals."""
    position = nearest([_comparable(c, whole=whole) for c in candidates], components)
    return None if position is None else candidates[position]


def _of_entry(own: Candidate) -> _Subject:
    return _Subject(
        namespace=own.namespace, pod=own.pod_name, pod_uid=own.pod_uid, template=own.template_name,
        key=own.entry_key, key_version=own.key_version, components=own.components, whole=True, own=own,
        annotations={},
    )  # fmt: skip


def _started(pod: Pod) -> datetime | None:
    """When the kubelet took the Pod, and so after it was decided for; None before. To the second."""
    started = from_text((pod.get("status") or {}).get("startTime"))
    return started and started + timedelta(seconds=1)


def _stored(annotations: Mapping[str, str]) -> Mapping[str, str] | None:
    try:
        stored = json.loads(annotations[names.COMPONENTS])
    except (KeyError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def _comparable(candidate: Candidate, *, whole: bool) -> Mapping[str, str]:
    """The candidate's components, without those that a base key lacks where only that is known."""
    if whole:
        return candidate.components
    return {n: d for n, d in candidate.components.items() if not n.startswith(_ASKED_FOR)}


def _difference(
    cause: Cause, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, chosen: Candidate
) -> Difference:
    if not cause.components or new is None:
        return Difference(cause=cause)
    name = cause.components[0]
    # The earlier Pod may have the container at another position.
    place = split(name)
    same = next((n for n in old or {} if split(n)[2:] == place[2:] and split(n)[0] == place[0]), name)
    was, now = shown(
        name, (old or {}).get(same if len(place) == 4 else name), new.get(name), old_known=old is not None
    )
    if old is None and place[-1] == "image" and place[-2:-1] == ("main",):
        was = chosen.image_id or None
    return Difference(cause=cause, old=was, new=now)
