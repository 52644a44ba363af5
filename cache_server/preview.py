"""What would happen to the steps of a workflow now, by the entries that stand: reused, run, or not known.

A step is compared by what its template says, and by the outputs that earlier steps of the same preview
would be reused with. What only a Pod tells (the API server's defaults, what other webhooks inject,
`podSpecPatch`), the contents of ConfigMaps and of input artifacts from elsewhere are taken to be as they
were.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cache_server.admission import opted_in
from cache_server.entries import Entry
from cache_server.entries.candidates import Candidate, Earlier
from memopod.steps import OutputsMismatch, Step, names
from memopod.steps.components import base_components
from memopod.steps.explain import Cause, Components, causes, nearest, split
from memopod.steps.key import KEY_VERSION, Unkeyable, check_keyable, component_digest
from memopod.steps.manifest import Given, Known, Planned, Produced, Steps, Unknown
from memopod.steps.outputs import OutputArtifact, select_declared
from memopod.steps.reasons import SENTENCES
from memopod.steps.staleness import is_fresh, requested

REUSE, RUN, UNKNOWN = "reuse", "run", "unknown"
_PARAMETERS = "template.inputs.parameters"
"""In the templates that Argo before 3.6 gives its Pods, in no later one's: see tests/steps/test_key.py."""
_NAMED = ("image", "command", "args", "env", "envFrom", "workingDir")
"""Fields of `main` that name a cause that the template shows as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What would happen to one step, and why. `entry` is the one that would be reused, or the nearest."""

    path: str
    verdict: str
    why: str
    entry: Entry | None = None
    causes: Sequence[Cause] = ()
    assumed: Sequence[str] = field(default_factory=tuple)


class Preview:
    """Judges the steps of a workflow against the entries of a namespace."""

    def __init__(self, entries: Earlier, namespace: str, *, now: datetime | None = None) -> None:
        self._entries = entries
        self._namespace = namespace
        self._now = now or datetime.now(UTC)

    async def judge(self, steps: Steps) -> list[Verdict]:
        """The verdicts, in the order of the steps. Raises BadManifest or EntriesUnavailable."""
        verdicts: list[Verdict] = []
        try:
            planned = next(steps)
            while True:
                verdict = await self._judge(planned)
                verdicts.append(verdict)
                planned = steps.send(_known(planned, verdict))
        except StopIteration:
            return verdicts

    async def _judge(self, planned: Planned) -> Verdict:
        path, template = planned.path, planned.template
        if template is None:
            return Verdict(path=path, verdict=RUN if planned.differs else UNKNOWN, why=planned.reason)
        step = _step(self._namespace, planned, template)
        refusal = _refusal(step)
        if refusal:
            return Verdict(path=path, verdict=RUN, why=SENTENCES[refusal])
        found = await self._entries.of_template(self._namespace, step.template_name)
        found = [candidate for candidate in found if candidate.key_version == KEY_VERSION]
        wanted, unclear = _wanted(step, planned), ""
        if found and (_PARAMETERS in wanted or planned.unclear):
            # The newest entry tells which Argo runs here: only what that one made can have the step's key.
            kept = _PARAMETERS in found[0].components
            found = [candidate for candidate in found if (_PARAMETERS in candidate.components) == kept]
            unclear = planned.unclear if kept else ""
            if not kept or unclear:
                wanted.pop(_PARAMETERS, None)
        position = nearest([_seen(c, wanted, unclear=bool(unclear)) for c in found], wanted)
        if position is None:
            return Verdict(path=path, verdict=RUN, why="no entry of this template stands")
        verdict = await self._compare(planned, step, wanted, found[position], unclear=bool(unclear))
        if unclear and verdict.verdict == REUSE:
            return Verdict(path=path, verdict=UNKNOWN, why=f"cannot tell: {unclear}", entry=verdict.entry)
        return verdict

    async def _compare(
        self, planned: Planned, step: Step, wanted: Components, candidate: Candidate, *, unclear: bool
    ) -> Verdict:
        path = planned.path
        entry = await self._entries.entry(self._namespace, candidate.id)
        differing = causes(_seen(candidate, wanted, unclear=unclear), wanted)
        if differing or entry is None:
            why = "; ".join(cause.sentence for cause in differing[:2]) or "its entry has just gone"
            return Verdict(path=path, verdict=RUN, why=why, entry=entry, causes=differing)
        age = (self._now - entry.finished_at).total_seconds()
        if not is_fresh(age, requested(step.annotations), entry.max_staleness_seconds):
            return Verdict(path=path, verdict=RUN, why=SENTENCES["stale"], entry=entry)
        try:
            select_declared(step, entry.outputs)
        except OutputsMismatch:
            return Verdict(path=path, verdict=RUN, why=SENTENCES["outputs-mismatch"], entry=entry)
        return Verdict(
            path=path, verdict=REUSE, why=f"as {entry.pod_name} ran", entry=entry,
            assumed=tuple(_assumed(planned)),
        )  # fmt: skip


def _step(namespace: str, planned: Planned, template: Mapping[str, Any]) -> Step:
    """The step with a Pod that holds what the manifest says of one."""
    main = template.get("container") or template.get("script")
    members = (
        [{**main, "name": "main"}] if main else (template.get("containerSet") or {}).get("containers") or []
    )
    wanted = [{"name": names.ENV_INCLUDE_RESULT, "value": "true"}] if planned.wants_result else []
    containers = [{**m, "env": [*(m.get("env") or ()), *wanted]} for m in members]
    pod = {
        "metadata": {"name": "", "namespace": namespace, **(template.get("metadata") or {})},
        "spec": {
            "volumes": list(planned.volumes),
            "initContainers": list(template.get("initContainers") or ()),
            "containers": [*containers, *(template.get("sidecars") or ())],
        },
    }
    return Step(
        namespace=namespace, pod_name="", pod_uid="", workflow="", workflow_uid="", node_id="", node_name="",
        template=_as_argo_writes(template), pod=pod,
    )  # fmt: skip


def _as_argo_writes(template: Mapping[str, Any]) -> dict[str, Any]:
    """The template as Go serialises it: some fields are always there."""
    written = {**template, "outputs": template.get("outputs") or {}}
    for kind in ("container", "script"):
        if template.get(kind):
            written[kind] = {"name": "", **template[kind]}
    return written


def _refusal(step: Step) -> str | None:
    """Why the step would run whatever entries there are; None if it may be reused."""
    if not opted_in(step.labels):
        return "not-opted-in"
    if step.annotations.get(names.BYPASS) == "true":
        return "bypass"
    if requested(step.annotations) == 0:
        return "disabled"
    try:
        check_keyable(step)
    except Unkeyable as error:
        return error.reason
    return None


def _wanted(step: Step, planned: Planned) -> dict[str, str]:
    """Digests of the components that a manifest tells."""
    told = {name: component_digest(value) for name, value in base_components(step).items() if _is_told(name)}
    template = step.template or {}
    main = template.get("container") or template.get("script") or {}
    # Without a command Argo takes the image's own, which the manifest does not have.
    told = {n: d for n, d in told.items() if split(n)[0] != "run" or main.get(split(n)[-1])}
    for name, value in planned.artifacts.items():
        if isinstance(value, Produced):
            told[f"input.{name}"] = component_digest(_identity(value))
    return told


def _is_told(name: str) -> bool:
    place = split(name)
    if name == "template.inputs":
        # The whole of it where it is empty, and that depends on Argo's version.
        return False
    return place[0] in ("template", "result", "salt") or (
        place[0] == "run" and place[2] == "main" and place[-1] in _NAMED
    )


def _seen(candidate: Candidate, wanted: Components, *, unclear: bool) -> dict[str, str]:
    """The candidate's components that can be compared with those of a manifest.

    Those of `main` only name a change that the template has too: `podSpecPatch` may have set them. `unclear`:
    nobody knows the input parameters.
    """
    fields = {split(name)[2:] for name in wanted if split(name)[0] == "run"}
    seen = {
        name: digest
        for name, digest in candidate.components.items()
        if (_is_told(name) and (split(name)[0] != "run" or split(name)[2:] in fields)) or name in wanted
    }
    if unclear:
        seen.pop(_PARAMETERS, None)
    whole = [n for n in seen if n.startswith(("template.container", "template.script"))]
    if all(seen[name] == wanted.get(name) for name in whole):
        seen = {name: digest for name, digest in seen.items() if split(name)[0] != "run"}
        seen |= {name: digest for name, digest in wanted.items() if split(name)[0] == "run"}
    return seen


def _identity(produced: Produced) -> list[Any]:
    """What an input's identity would be, while its producer's output is as it was recorded."""
    artifact = produced.artifact
    location = artifact.location
    if artifact.digest is not None:
        return ["content", artifact.digest, artifact.size]
    if artifact.etag is not None:
        return ["version", location.endpoint, location.uri, artifact.etag, artifact.size]
    return ["produced", location.endpoint, location.uri, produced.entry]


def _assumed(planned: Planned) -> Iterator[str]:
    for name, value in planned.artifacts.items():
        if isinstance(value, Given) and "raw" not in value.declared:
            yield f"input {name} is unchanged"
    if planned.conditional:
        yield "its condition holds"


def _known(planned: Planned, verdict: Verdict) -> Known:
    """What later steps may take for this step's outputs."""
    entry = verdict.entry
    if verdict.verdict != REUSE or entry is None:
        return Known(unknown=f"unknown until {planned.path} ran")
    declared = (planned.template or {}).get("outputs") or {}
    how = {artifact["name"]: artifact for artifact in declared.get("artifacts") or ()}
    return Known(
        parameters=dict(entry.outputs.parameters),
        artifacts={a.name: _produced(a, entry, how.get(a.name, {})) for a in entry.outputs.artifacts},
        result=Unknown("it has no result") if entry.outputs.result is None else entry.outputs.result,
    )


def _produced(artifact: OutputArtifact, entry: Entry, declared: Mapping[str, Any]) -> Produced:
    return Produced(artifact, entry.id, {**declared, **artifact.reported})
