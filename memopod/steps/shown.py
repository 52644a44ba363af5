"""What of a step's parts may be shown to whoever asks why it ran: names and places, never a value.

Parameters, arguments, scripts and literal variables can hold secrets, so they are told apart by where
they differ. A field is shown only if it is known to hold no such thing.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from memopod.steps.explain import split

_LONGEST = 120
_PLAIN_FIELDS = frozenset(
    {
        *("image", "imagePullPolicy", "workingDir", "securityContext", "volumeMounts", "volumeDevices"),
        *("envFrom", "tty", "stdin", "stdinOnce", "restartPolicy", "ports", "terminationMessagePath"),
        *("terminationMessagePolicy", "serviceAccountName", "serviceAccount", "hostNetwork", "hostPID"),
        *("hostIPC", "hostUsers", "hostname", "subdomain", "dnsPolicy", "dnsConfig", "runtimeClassName"),
        *("hostAliases", "imagePullSecrets", "automountServiceAccountToken", "enableServiceLinks"),
        *("shareProcessNamespace", "terminationGracePeriodSeconds", "setHostnameAsFQDN", "os", "executor"),
        *("result", "ignored-inputs"),
    }
)
_REFERENCES = ("secretKeyRef", "configMapKeyRef", "fieldRef", "resourceFieldRef")
_NAMED_BY_USERS = ("input", "configmap")
"""Components whose last part is no field: an input artifact may be called `image`."""
_HIDDEN = "not shown"
_ABSENT = "-"

Values = tuple[str | None, str | None]
"""Texts of an earlier and a later value; None where nothing may be said."""


def shown(name: str, old: Any, new: Any, *, old_known: bool = True) -> Values:
    """Texts of the two values of one component that differs. `old_known` is whether there is an old one."""
    place = split(name)
    if place[0] in _NAMED_BY_USERS:
        return None, None
    field = place[-1]
    if field in _PLAIN_FIELDS:
        return _plain(old) if old_known else None, _plain(new)
    describe = _DESCRIBED.get(field)
    if describe is None:
        return None, None
    old_items = list(describe(old)) if old_known else []
    new_items = list(describe(new))
    if not old_known:
        return None, _listed(label for label, _ in new_items)
    return _only(old_items, new_items), _only(new_items, old_items)


def _plain(value: Any) -> str:
    if value is None:
        return _ABSENT
    return _cut(value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


Item = tuple[str, Any]
"""How an item is called, and what it is compared by."""


def _only(items: Sequence[Item], others: Sequence[Item]) -> str:
    """The items that the others lack."""
    return _listed(label for label, value in items if (label, value) not in others)


def _listed(labels: Iterator[str]) -> str:
    return _cut(", ".join(labels)) or _ABSENT


def _words(value: Any) -> Iterator[Item]:
    for number, word in enumerate(value or (), start=1):
        yield f"word {number} of {len(value)} ({_HIDDEN})", word


def _variables(value: Any) -> Iterator[Item]:
    for variable in value or ():
        source = variable.get("valueFrom") or {}
        kind = next((kind for kind in _REFERENCES if kind in source), None)
        if kind in ("secretKeyRef", "configMapKeyRef"):
            what = "Secret" if kind == "secretKeyRef" else "ConfigMap"
            told = f"from {what} {source[kind].get('name')}, key {source[kind].get('key')}"
        elif kind == "fieldRef":
            told = f"from {source[kind].get('fieldPath')}"
        else:
            told = f"value {_HIDDEN}"
        yield f"{variable.get('name')} ({told})", variable


def _volumes(value: Any) -> Iterator[Item]:
    for volume in value or ():
        kinds = sorted(volume.keys() - {"name"})
        kind = kinds[0] if kinds else "emptyDir"
        source = volume.get(kind) or {}
        name = next((source[f] for f in ("secretName", "claimName", "name", "reference") if f in source), "")
        yield f"{volume.get('name')} ({kind}{' ' if name else ''}{name})", volume


def _named(value: Any) -> Iterator[Item]:
    """Parameters and artifacts: what they are called and where they are, not what they hold."""
    for item in value or ():
        path = item.get("path") or (item.get("valueFrom") or {}).get("path")
        yield f"{item.get('name')}{f' at {path}' if path else ''}", item


def _text(value: Any) -> Iterator[Item]:
    if value is not None:
        yield f"{len(str(value).splitlines())} lines ({_HIDDEN})", value


_DESCRIBED: Mapping[str, Callable[[Any], Iterator[Item]]] = {
    "args": _words,
    "command": _words,
    "env": _variables,
    "volumes": _volumes,
    "parameters": _named,
    "artifacts": _named,
    "source": _text,
}
