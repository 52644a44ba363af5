"""Label and field selectors: which objects a list, a watch or a webhook is about.

Grammar: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from memopod.kube import EVENTS, PODS, Resource
from memopod.sandbox.apiserver.statuses import bad_request

Matches = Callable[[Mapping[str, Any]], bool]
"""Whether an object is selected."""

_SET: Final = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUALITY: Final = re.compile(r"^(?P<key>[^=!\s]+)\s*(?P<op>==|!=|=)\s*(?P<value>[^=!\s]*)$")
_EXISTENCE: Final = re.compile(r"^(?P<not>!?)\s*(?P<key>[^=!()<>,\s]+)$")
_TOP_LEVEL_COMMA: Final = re.compile(r",(?![^()]*\))")

_FIELDS: Final[Mapping[Resource, frozenset[str]]] = {
    PODS: frozenset({"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "status.phase"}),
    EVENTS: frozenset(
        {
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "reason",
            "type",
        }
    ),
}
_FIELDS_OF_ALL: Final = frozenset({"metadata.name", "metadata.namespace"})


@dataclass(frozen=True, slots=True)
class Requirement:
    """`key` is among `values`; with no values, `key` is there. `negated` turns it round.

    "Not among" is also met by an object that lacks the key.
    """

    key: str
    values: frozenset[str] | None = None
    negated: bool = False

    def met_by(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels fulfil it."""
        met = self.key in labels and (self.values is None or labels[self.key] in self.values)
        return met != self.negated


def parse_labels(text: str) -> list[Requirement]:
    """The requirements of `a=b,c!=d,e in (f,g),h notin (i),j,!k`; raises StatusError (400)."""
    return [_parse(part.strip()) for part in _TOP_LEVEL_COMMA.split(text)] if text.strip() else []


def label_selector(selector: Mapping[str, Any] | None) -> list[Requirement]:
    """The requirements of a LabelSelector object (`matchLabels`, `matchExpressions`); none select all."""
    selector = selector or {}
    requirements = [
        Requirement(key, frozenset({value})) for key, value in (selector.get("matchLabels") or {}).items()
    ]
    for expression in selector.get("matchExpressions") or []:
        operator = expression.get("operator")
        if operator not in {"In", "NotIn", "Exists", "DoesNotExist"}:
            raise bad_request(f"{operator!r} is not a valid label selector operator")
        values = frozenset(expression.get("values") or ()) if operator in {"In", "NotIn"} else None
        requirements.append(Requirement(expression["key"], values, operator in {"NotIn", "DoesNotExist"}))
    return requirements


def all_met(requirements: Sequence[Requirement], labels: Mapping[str, str] | None) -> bool:
    """Whether labels fulfil all of them."""
    return all(requirement.met_by(labels or {}) for requirement in requirements)


def matcher(resource: Resource, *, labels: str, fields: str, namespace: str | None) -> Matches:
    """What a list's or watch's parameters select; raises StatusError (400)."""
    label_requirements = parse_labels(labels)
    field_requirements = _parse_fields(resource, fields)

    def matches(item: Mapping[str, Any]) -> bool:
        metadata = item["metadata"]
        if namespace is not None and metadata.get("namespace") != namespace:
            return False
        return all_met(label_requirements, metadata.get("labels")) and all(
            requirement.met_by({requirement.key: _field(item, requirement.key)})
            for requirement in field_requirements
        )

    return matches


def _parse(part: str) -> Requirement:
    if match := _SET.match(part):
        values = frozenset(value.strip() for value in match["values"].split(","))
        return Requirement(match["key"], values, match["op"] == "notin")
    if match := _EQUALITY.match(part):
        return Requirement(match["key"], frozenset({match["value"]}), match["op"] == "!=")
    if match := _EXISTENCE.match(part):
        return Requirement(match["key"], None, bool(match["not"]))
    raise bad_request(f"unable to parse requirement {part!r} of the label selector")


def _parse_fields(resource: Resource, text: str) -> list[Requirement]:
    requirements = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _EQUALITY.match(part)
        if match is None:
            raise bad_request(f"invalid field selector {part!r}: expected field=value or field!=value")
        if match["key"] not in _FIELDS_OF_ALL | _FIELDS.get(resource, frozenset()):
            raise bad_request(f"field label not supported: {match['key']}")
        requirements.append(Requirement(match["key"], frozenset({match["value"]}), match["op"] == "!="))
    return requirements


def _field(item: Mapping[str, Any], path: str) -> str:
    value: Any = item
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""
