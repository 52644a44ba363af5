"""What a Pod's spec tells about its key, remembered by its text: the same steps come again and again.

Two runs of one step differ in few places of their specs: in the values of variables that Argo sets for a
run, in the name of the service account's token volume, and in the keys below which artifacts of this run
are. These are the *holes* of a spec; what is between them is its *frame*, and is compared byte by byte.

**Why this cannot give another key than reading the spec does.** The frame says where each hole is. It
begins and ends at the quotes of a JSON string (`{"name":"` is the beginning of an object wherever it occurs
in JSON, since a quote inside a string follows a backslash), and holds printable ASCII without quote and
backslash. So two specs of one frame decode to the same value but for the strings in the holes. Before a
frame is remembered, its key is computed once more with something else in every hole, text that the spec
does not hold anywhere, and must be the same: no hole counts. What the key takes from outside the spec is
part of what it is remembered under (salt, allowed volumes), is compared at each use (names of the run in
keys of outputs, and of what Argo offloaded), or keeps the frame from being remembered (the downward API).
"""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import count
from typing import Any, NamedTuple

from memopod.steps import names
from memopod.steps.argo import NotAStep, Step, containers, environment, read_step, template_text
from memopod.steps.components import base_components
from memopod.steps.deadline import template_waits
from memopod.steps.key import KeyRules, Unkeyable, base_digest, output_keys
from memopod.steps.kubeflow import FingerprintError, fingerprint
from memopod.steps.volumes import MOUNTS, OFFLOADED_VOLUME, TOKEN_PREFIX

_TOKEN = TOKEN_PREFIX.encode()
_OFFLOADED = b'%s","configMap":{"name":"' % OFFLOADED_VOLUME.encode()
_DEADLINE = b'ARGO_DEADLINE","value":"'
_HOLE = re.compile(
    rb'\{"name":"('
    rb'ARGO_(?:DEADLINE|NODE_ID|POD_NAME|WORKFLOW_NAME|WORKFLOW_UID)","value":"'
    rb'|TRACE(?:PARENT|STATE)","value":"|' + _TOKEN + b"|" + re.escape(_OFFLOADED) + rb')([ !#-\[\]-~]*)"'
)
"""Start of a hole, as it stands in the frame, and what is in the hole."""
_ARTIFACT_KEY, _END = rb"\"key\":\"", rb"\""
"""Around a key in ARGO_TEMPLATE, where quotes are escaped once."""
_PLAIN = re.compile(rb"[ !#-\[\]-~]*")
_BETWEEN = b"\0"
"""No JSON text holds this byte."""
Frame = tuple[bytes, str | None, str | None]
"""The text between the holes of a spec; salt and allowed volumes by the Pod's annotations."""
_MARK = "memopod-marker"
"""What is tried in place of what is in a hole. It must be something else: no spec that holds it is learnt."""
_ENTRIES, _BYTES = 4_096, 16 << 20
_SIGHTINGS = 16_384


class Told(NamedTuple):
    """What a frame tells: the base key's digest, and what else admission asks of a spec.

    `waits`: seconds that the template allows; `output_keys`: keys of object stores that its outputs name;
    `tokens`, `offloaded` and `deadlines`: which holes hold the name of the token's volume, that of the
    ConfigMap with what Argo offloaded (the Pod's own), and values of ARGO_DEADLINE;
    `fingerprint`: Kubeflow's, None where it has none, or the frame alone does not tell it.
    """

    digest: str
    waits: tuple[float, ...]
    output_keys: tuple[str, ...]
    tokens: tuple[int, ...]
    offloaded: tuple[int, ...]
    deadlines: tuple[int, ...]
    fingerprint: str | None


class Sight(NamedTuple):
    """A spec that was looked at: its frame with what is outside of it, its holes, and what is known of it."""

    frame: Frame
    starts: list[bytes]
    values: list[bytes]
    told: Told | None

    def at(self, start: bytes) -> tuple[int, ...]:
        """Which holes begin so."""
        return tuple(number for number, each in enumerate(self.starts) if each == start)

    def deadlines(self, told: Told) -> set[str | None]:
        """What Argo wrote into ARGO_DEADLINE."""
        return {self.values[number].decode() for number in told.deadlines}


class Repeats:
    """Remembers frames that were seen twice, up to a number of them and of bytes.

    A frame that is too much makes room: the one that was not asked for the longest goes first.
    """

    def __init__(self, rules: KeyRules, *, entries: int = _ENTRIES, size: int = _BYTES) -> None:
        self._rules = rules
        self._entries, self._room = entries, size
        self._known: OrderedDict[Frame, Told] = OrderedDict()
        self._seen: set[int] = set()

    def look(self, spec: bytes, pod: str, workflow: str, annotations: Mapping[str, str]) -> Sight:
        """Look at the JSON text of a spec whose Pod has that name and these annotations, of that workflow."""
        parts = _HOLE.split(spec)
        starts, values = parts[1::3], parts[2::3]
        del parts[2::3]
        text = _BETWEEN.join(parts)
        if _ARTIFACT_KEY in text:
            text = _with_keys(text, workflow, _BETWEEN)
        frame = text, annotations.get(names.SALT), annotations.get(names.ALLOW_VOLUMES)
        told = self._known.get(frame)
        if told is not None:
            self._known.move_to_end(frame)
            if not _is_consistent(told, values, pod):
                told = None
        return Sight(frame, starts, values, told)

    def learn(self, spec: bytes, sight: Sight, step: Step) -> None:
        """Remember the frame of a step that has a base key, if it was seen before and no hole counts."""
        if sight.frame in self._known:
            return
        number = hash(sight.frame)
        if number not in self._seen:
            if len(self._seen) >= _SIGHTINGS:
                self._seen.clear()
            self._seen.add(number)
            return
        told = _told(spec, sight, step, self._rules)
        if told is None:
            return
        self._known[sight.frame] = told
        self._room -= _size(sight.frame)
        while self._room < 0 or len(self._known) > self._entries:
            oldest, _ = self._known.popitem(last=False)
            self._room += _size(oldest)


def _size(frame: Frame) -> int:
    """Bytes at most: a salt can be longer than a spec, and a character of it has up to four."""
    text, *annotations = frame
    return len(text) + 4 * sum(len(value or "") for value in annotations)


def _is_consistent(told: Told, values: list[bytes], pod: str) -> bool:
    """Whether there is one token, and what was offloaded is the Pod's own: as where the frame was read."""
    if any(values[number] != pod.encode() for number in told.offloaded):
        return False
    return len({values[number] for number in told.tokens}) <= 1


def _with_keys(text: bytes, workflow: str, mark: bytes) -> bytes:
    """The text with something else for each artifact's key that names the workflow."""
    name, pieces = workflow.encode(), text.split(_ARTIFACT_KEY)
    for position in range(1, len(pieces)):
        key, end, rest = pieces[position].partition(_END)
        if name in key and end and _PLAIN.fullmatch(key):
            pieces[position] = mark + end + rest
    return _ARTIFACT_KEY.join(pieces)


def _told(spec: bytes, sight: Sight, step: Step, rules: KeyRules) -> Told | None:
    """What the frame tells, None if that cannot be told from the frame alone."""
    if _MARK.encode() in spec:
        return None
    metadata = {**step.pod["metadata"], "name": _MARK}
    try:
        pod = {"metadata": metadata, "spec": json.loads(_marked(spec, step.workflow))}
        marked = read_step(pod, namespace=step.namespace)
        digest = base_digest(step, rules)
        same = base_digest(marked, rules) == digest
    except (NotAStep, Unkeyable, ValueError):
        return None
    template, print_ = step.template or {}, _fingerprint(step)
    told = Told(
        digest=digest, waits=tuple(template_waits(template)), output_keys=tuple(output_keys(template)),
        fingerprint=print_ if print_ == _fingerprint(marked) else None,
        tokens=sight.at(_TOKEN), offloaded=sight.at(_OFFLOADED), deadlines=sight.at(_DEADLINE),
    )  # fmt: skip
    plain = (
        same
        and _is_consistent(told, sight.values, step.pod_name)
        and _deadlines(marked) == {f"{_MARK}-{number}" for number in told.deadlines}
    )
    return told if plain and _depends_on_spec_alone(step, told, rules) else None


def _fingerprint(step: Step) -> str | None:
    try:
        return fingerprint(template_text(step.pod) or "")
    except FingerprintError:
        return None


def _depends_on_spec_alone(step: Step, told: Told, rules: KeyRules) -> bool:
    spec = step.pod["spec"]
    offloaded = [v for v in spec.get("volumes") or () if v.get("name") == OFFLOADED_VOLUME]
    return (
        template_text({"metadata": {}, "spec": spec}) is not None
        and len(offloaded) == len(told.offloaded)
        and sum(name.startswith(TOKEN_PREFIX) for name in _volume_names(spec)) <= 1
        and not base_components(step, rules.ignored_containers)["downward"]
    )


def _volume_names(spec: Mapping[str, Any]) -> set[str]:
    """Names of volumes, and those that containers mount."""
    mounts = [m for c in containers({"spec": spec}) for field in MOUNTS for m in c.get(field) or ()]
    return {str(volume.get("name")) for volume in (*(spec.get("volumes") or ()), *mounts)}


def _deadlines(step: Step) -> set[str | None]:
    return {environment(c, names.ENV_DEADLINE) for c in containers(step.pod)} - {None}


def _marked(spec: bytes, workflow: str) -> bytes:
    """The spec with something else in each hole: another thing in each, but for names that are compared."""
    tried, numbers = _MARK.encode(), count()

    def mark(match: re.Match[bytes]) -> bytes:
        number, start = next(numbers), match[1]
        text = tried if start in (_TOKEN, _OFFLOADED) else b"%s-%d" % (tried, number)
        return b'{"name":"%s%s"' % (start, text)

    return _with_keys(_HOLE.sub(mark, spec), workflow, tried)
