"""Who a step is: its entry key, with what must be asked for (ConfigMaps, object stores, entries)."""

from collections.abc import Mapping
from typing import Any

from cache_server.artifacts import Artifacts
from cache_server.entries import Entries, Entry
from cache_server.recordings import Recordings
from cache_server.webhook import decode_template
from memopod.kube import CONFIG_MAPS, Client, Forbidden, NotFound
from memopod.steps import Step, names
from memopod.steps.argo import NotAStep
from memopod.steps.argo import decode_template as decode_checked
from memopod.steps.identity import Identity
from memopod.steps.inputs import (
    InputArtifact,
    config_map_content,
    config_maps,
    ignored_inputs,
    input_artifacts,
    offload_name,
    offloaded_arguments,
)  # fmt: skip
from memopod.steps.key import Key, KeyRules, Unkeyable, entry_key, evidence, with_template
from memopod.steps.locations import Location
from memopod.steps.times import to_text

_PRODUCER_SECONDS = 2.0
"""How long an input's producer that is being recorded is waited for: a decision has 5 s in all."""


class Identifier:
    """Tells who a step is. `recordings` are told by whoever records runs in this process."""

    def __init__(self, client: Client, artifacts: Artifacts, entries: Entries, rules: KeyRules) -> None:
        self._client = client
        self._artifacts = artifacts
        self._entries = entries
        self._rules = rules
        self.recordings = Recordings()

    async def identify(self, step: Step, *, patient: bool = False, base: Key | None = None) -> Identity:
        """Read what enters the step's entry key; `patient`: an input's producer that is being recorded
        right now is waited for, for two seconds at most. `base` is the step's base key, if it is at hand.

        Raises Unkeyable when there is no key; kube.ApiError, ArtifactStoreUnavailable or
        EntriesUnavailable when somebody did not answer.
        """
        known: dict[str, Any] = {}
        versions: dict[str, Any] = {}
        given, step = step, await self._with_offloaded(step, known, versions)
        for name, use in sorted(config_maps(step, self._rules).items()):
            config_map = await self._config_map(step.namespace, name, optional=use.optional)
            known[f"configmap.{name}"] = config_map and config_map_content(use, config_map)
            versions[f"configmap.{name}"] = _version(config_map)
        for artifact in input_artifacts(step):
            name = f"input.{artifact.name}"
            known[name], versions[name] = await self._artifact_identity(step, artifact, patient=patient)
        ignored = ignored_inputs(step)
        if ignored:
            known["ignored-inputs"] = sorted(ignored)
        fixed = not any(name.startswith(("configmap.", "offloaded", "input.")) for name in known)
        key = entry_key(step, known, self._rules, base=base if step is given else None)
        return Identity(step=step, key=key, evidence=evidence(key, versions), fixed=fixed)

    async def _with_offloaded(self, step: Step, known: dict[str, Any], versions: dict[str, Any]) -> Step:
        """The step with the template that Argo put into a ConfigMap; `known` gets the arguments."""
        name = offload_name(step)
        if name is None:
            return step
        config_map = await self._config_map(step.namespace, name, optional=False)
        data: Mapping[str, str] = (config_map or {}).get("data") or {}
        versions["offloaded"] = _version(config_map)
        known["offloaded.args"] = offloaded_arguments(data)
        if step.template is not None:
            return step
        try:
            return with_template(step, decode_checked(data.get(names.ENV_TEMPLATE, ""), decode_template))
        except NotAStep as error:
            raise Unkeyable(error.reason) from error

    async def _config_map(self, namespace: str, name: str, *, optional: bool) -> Mapping[str, Any] | None:
        try:
            return await self._client.get(CONFIG_MAPS, name, namespace=namespace)
        except NotFound as error:
            if optional:
                return None
            raise Unkeyable("configmap-unreadable") from error
        except Forbidden as error:
            raise Unkeyable("configmap-unreadable") from error

    async def _artifact_identity(
        self, step: Step, artifact: InputArtifact, *, patient: bool
    ) -> tuple[Any, Any]:
        """Identity of an input, the strongest that can be told, and when it was written.

        Its content; else its location and the version there; else its location and the entry that
        produced it, where the location is that run's own. Raises Unkeyable when there is none. The time
        is no part of the identity: it tells that a place was written over, and be it with the same.
        """
        location = artifact.location
        artifacts = await self._artifacts.within(step)
        if artifacts.knows(location):
            state = await artifacts.describe(location)
            if state is None:
                raise Unkeyable("input-unknown")
            written = [state.etag, to_text(state.modified)]
            if state.content:
                return ["content", state.content, state.size], written
            if state.etag:
                return ["version", location.endpoint, location.uri, state.etag, state.size], written
        producer = await self._entries.producer(step.namespace, location)
        if (
            producer is None
            and patient
            and await self.recordings.settled(step.namespace, location, _PRODUCER_SECONDS)
        ):
            producer = await self._entries.producer(step.namespace, location)
        if producer is not None and _stands_alone(producer, location):
            return ["produced", location.endpoint, location.uri, producer.id], None
        raise Unkeyable("input-unknown")


def _stands_alone(producer: Entry, location: Location) -> bool:
    """Whether the artifact was recorded without an object store, as one that nobody else can write over.

    One that a store described was trusted for its ETag, and that cannot be compared here.
    """
    found = [a for a in producer.outputs.artifacts if a.location == location]
    return all(a.etag is None and a.digest is None for a in found)


def _version(config_map: Mapping[str, Any] | None) -> list[Any]:
    metadata = (config_map or {}).get("metadata") or {}
    return [metadata.get("uid"), metadata.get("resourceVersion")]
