"""Why two steps have different keys: their components compared, and the causes ranked.

One change of a step moves several components: another image is in the Pod and in the template, another
value of a parameter in the arguments that it ends up in. A *cause* gathers what belongs together, and
the first cause is the one that explains the others.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Components = Mapping[str, str]
"""Name of a component -> its digest."""

_PART = re.compile(r"(?:[^.\\]|\\.)+")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that differs: `subject` names it for people, `components` are those that it moved.

    `change` is `changed`, `added` (only the later step has it) or `removed`.
    """

    subject: str
    change: str
    components: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """`image of main changed`."""
        return f"{self.subject} {self.change}"


@dataclass(frozen=True, slots=True)
class _Moved:
    name: str
    change: str
    rank: int
    subject: str


_RANKS = (
    # What explains most stands first; a subject further down may be its consequence.
    "salt",
    "container",
    "order",
    "image",
    "parameters",
    "offloaded",
    "source",
    "command",
    "args",
    "ignored",
    "input",
    "configmap",
    "artifacts",
    "env",
    "envFrom",
    "outputs",
    "result",
    "volumes",
    "mounts",
    "pod-first",
    "field",
    "downward",
    "pod",
    "template",
    "consequence",
)
_RANK = {name: rank for rank, name in enumerate(_RANKS)}
_OF_CONTAINER = {
    # Field of a container -> rank, and how it is called.
    "image": ("image", "image"),
    "command": ("command", "command"),
    "args": ("args", "arguments"),
    "env": ("env", "environment"),
    "envFrom": ("envFrom", "environment from ConfigMaps or Secrets"),
    "volumeMounts": ("mounts", "volume mounts"),
    "volumeDevices": ("mounts", "block devices"),
    "source": ("source", "script source"),
}
_SINGLE = {
    "salt": ("salt", "salt (annotation memopod.io/salt)"),
    "volumes": ("volumes", "sources of the mounted volumes"),
    "downward": ("downward", "labels, annotations or resources that the step reads"),
    "result": ("result", "whether the step's result is used"),
    "ignored-inputs": ("ignored", "ignored inputs (annotation memopod.io/ignore-inputs)"),
    "offloaded.args": ("offloaded", "arguments, which Argo keeps in a ConfigMap"),
}
_OF_TEMPLATE = {
    ("inputs", "parameters"): ("parameters", "input parameters"),
    ("inputs", "artifacts"): ("artifacts", "declared input artifacts"),
    ("outputs", "parameters"): ("outputs", "declared output parameters"),
    ("outputs", "artifacts"): ("outputs", "declared output artifacts"),
}
_FOLLOWING = {
    # A field of the template that says of all containers at once what the Pod says of each.
    "container": "the template's container, in what the Pod does not show",
    "containerSet": "graph of the container set",
    "sidecars": "the template's sidecars, in what the Pod does not show",
    "initContainers": "the template's init containers, in what the Pod does not show",
    "inputs": "declared inputs",
    "outputs": "declared outputs",
    "offloaded": "whether Argo offloads the template",
}
_SAME_AS = {"serviceAccount": "serviceAccountName"}
_BEFORE = ("hostNetwork", "serviceAccountName")
"""Fields of a Pod that set others by default."""


def causes(old: Components, new: Components) -> list[Cause]:
    """What differs between an earlier step and a later one, the most telling first; [] for equal ones."""
    old_by_place, new_by_place = _by_place(old), _by_place(new)
    old_containers, new_containers = _containers(old), _containers(new)
    moved = [
        _moved(place, old_by_place.get(place), new_by_place.get(place), (old_containers, new_containers))
        for place in old_by_place.keys() | new_by_place.keys()
        if _digest(old, old_by_place.get(place)) != _digest(new, new_by_place.get(place))
    ]
    common = [c for c in old_containers if c in new_containers]
    if common != [c for c in new_containers if c in old_containers]:
        moved.append(_Moved("", "changed", _RANK["order"], "order of the containers"))
    return _gather(moved)


def distance(old: Components, new: Components) -> int:
    """How many components differ: 0 for equal ones."""
    same = len(old.items() & new.items())
    return len(old) + len(new) - 2 * same - len(_both(old, new))


def nearest(candidates: Sequence[Components], new: Components) -> int | None:
    """Position of the candidate that differs least, the first of equals; None if there are none."""
    return min(range(len(candidates)), key=lambda i: distance(candidates[i], new), default=None)


def _both(old: Components, new: Components) -> list[str]:
    return [name for name in old.keys() & new.keys() if old[name] != new[name]]


def _gather(moved: Iterable[_Moved]) -> list[Cause]:
    """One cause a subject, and consequences at the end, but for those that others explain."""
    subjects: dict[str, list[_Moved]] = {}
    for one in sorted(moved, key=lambda m: (m.rank, m.subject, m.name)):
        # What the template says of the Pod moves with it.
        twin = one.subject.removesuffix(" of the template") + " of the Pod"
        subjects.setdefault(twin if twin in subjects else one.subject, []).append(one)
    found: list[Cause] = []
    for subject, members in subjects.items():
        if members[0].rank == _RANK["consequence"] and found:
            continue
        changes = {member.change for member in members}
        names = tuple(member.name for member in members if member.name)
        change = changes.pop() if len(changes) == 1 else "changed"
        found.append(Cause(subject=subject, change=change, components=names))
    return found


Place = tuple[str, ...]


def _by_place(components: Components) -> dict[Place, str]:
    """Where each component is, without the positions of containers, which others may shift."""
    places: dict[Place, str] = {}
    for name in components:
        place = split(name)
        if place[0] in ("run", "init") and len(place) == 4:
            place = (place[0], *place[2:])
        places[place] = name
    return places


def split(name: str) -> Place:
    """The parts of a component's name: `("run", "1", "main", "image")`."""
    for prefix in ("configmap.", "input."):
        if name.startswith(prefix):
            return prefix[:-1], name[len(prefix) :]
    if name in _SINGLE:
        return (name,)
    return tuple(_ESCAPE.sub(r"\1", part) for part in _PART.findall(name))


def _containers(components: Components) -> list[tuple[str, str]]:
    """(stage, name) of the containers, in their order."""
    found = {
        (int(place[1]), place[0], place[2])
        for place in map(split, components)
        if place[0] in ("run", "init") and len(place) == 4 and place[1].isdigit()
    }
    return [(stage, name) for _, stage, name in sorted(found)]


def _digest(components: Components, name: str | None) -> str | None:
    return components[name] if name is not None else None


def _moved(place: Place, old: str | None, new: str | None, containers: tuple[Any, Any]) -> _Moved:
    change = "added" if old is None else "removed" if new is None else "changed"
    rank, subject, change = _subject(place, change, containers)
    return _Moved(new or old or "", change, _RANK[rank], subject)


def _subject(place: Place, change: str, containers: tuple[Any, Any]) -> tuple[str, str, str]:
    """Rank, subject and change of one component that differs."""
    match place:
        case (name,) if name in _SINGLE:
            return *_SINGLE[name], change
        case ("configmap", name):
            rank = "configmap" if change == "changed" else "consequence"
            return rank, f"content of ConfigMap {name}", change
        case ("input", name):
            rank = "input" if change == "changed" else "consequence"
            return rank, f"input artifact {name}", change
        case ("run" | "init" as stage, name, field):
            return _of_container(stage, name, field, change, containers)
        case ("template", "script", field):
            return _of_container("run", "main", field, change, containers)
        case ("template", *parts):
            return _of_template(tuple(parts), change)
        case ("pod", field):
            return _of_pod(field, change)
    return "pod", ".".join(place), change


def _of_container(
    stage: str, name: str, field: str, change: str, containers: tuple[Any, Any]
) -> tuple[str, str, str]:
    old, new = containers
    kind = "init container" if stage == "init" else "container"
    if (stage, name) not in old or (stage, name) not in new:
        return "container", f"{kind} {name}", "added" if (stage, name) in new else "removed"
    rank, called = _OF_CONTAINER.get(field, ("field", field))
    # A field that comes or goes with its value has changed for whoever looks at the container.
    return rank, f"{called} of {name}", "changed" if field in _OF_CONTAINER else change


def _of_template(parts: tuple[str, ...], change: str) -> tuple[str, str, str]:
    if parts in _OF_TEMPLATE:
        return *_OF_TEMPLATE[parts], "changed"
    if len(parts) == 1 and parts[0] in _FOLLOWING:
        return "consequence", _FOLLOWING[parts[0]], "changed"
    return "template", f"{'.'.join(parts)} of the template", change


def _of_pod(field: str, change: str) -> tuple[str, str, str]:
    field = _SAME_AS.get(field, field)
    return "pod-first" if field in _BEFORE else "pod", f"{field} of the Pod", change
