"""The key of a step: what decides its result, and nothing else.

The rule is an exclude list (`memopod.steps.components`): a field that nobody thought of costs a run,
never a wrong reuse. Two stages:

- the *base key* needs the Pod alone, and is computed at admission;
- the *entry key* adds what must be asked for: the contents of ConfigMaps, what Argo offloaded, and
  the identity of each input artifact.

A change of any rule here, in `components`, `volumes`, `inputs` or `framing` is a new KEY_VERSION.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memopod.steps import names
from memopod.steps.argo import Run, Step
from memopod.steps.components import base_components, counted_containers
from memopod.steps.framing import canonical, frame
from memopod.steps.locations import KINDS, kind_of
from memopod.steps.volumes import counted_volumes, unknown_volumes

KEY_VERSION = 3
"""Version of the rules. Keys of different versions never match."""


class Unkeyable(ValueError):
    """The step has no key, so it is never reused. `reason` is a slug of `memopod.steps.reasons`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Key:
    """A key: `digest` (64 hexadecimal digits), of what `read` gives: component name -> JSON value.

    A look-up needs the digest alone: the components are read when somebody asks.
    """

    digest: str
    read: Callable[[], Mapping[str, Any]] = field(repr=False, compare=False)

    @property
    def values(self) -> Mapping[str, Any]:
        """The components by name."""
        return self.read()

    @property
    def components(self) -> Mapping[str, str]:
        """A short digest (16 hexadecimal digits) of each component by name."""
        return {name: component_digest(value) for name, value in sorted(self.values.items())}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """What a cluster may change about keys. `ignored_containers`: sidecars that a mesh injects.

    Raises ValueError if the step's own program would be ignored.
    """

    ignored_containers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if "main" in self.ignored_containers:
            raise ValueError("ignored sidecars: 'main' is the step itself, and cannot be ignored")


def base_digest(step: Step, rules: KeyRules = KeyRules()) -> str:
    """Digest of the base key alone, for admission, where each microsecond counts. Raises Unkeyable."""
    check_keyable(step, rules)
    return _digest(base_components(step, rules.ignored_containers))


def base_key(step: Step, rules: KeyRules = KeyRules()) -> Key:
    """Key of all that the Pod itself tells. Raises Unkeyable."""
    check_keyable(step, rules)
    return _key(base_components(step, rules.ignored_containers))


def remembered_key(digest: str, step: Step, rules: KeyRules = KeyRules()) -> Key:
    """The base key of a step whose digest under these rules is known already."""
    return Key(digest, lambda: base_components(step, rules.ignored_containers))


def entry_key(
    step: Step, known: Mapping[str, Any], rules: KeyRules = KeyRules(), *, base: Key | None = None
) -> Key:
    """Key of the step as a whole: the base components, and `known`, component name -> JSON value.

    `step` must have its template (see `with_template` for an offloaded one). `base` is `base_key` of
    this very step under these very rules, if that is at hand. Raises Unkeyable.
    """
    if step.template is None:
        raise Unkeyable("template-unreadable")
    base_of_step = base_key(step, rules) if base is None else base
    # With nothing added it is the same set of components, and so the same key.
    return _key({**base_of_step.values, **known}) if known else base_of_step


def evidence(key: Key, versions: Mapping[str, Any]) -> str:
    """Digest of what a step could read at one moment: its entry key, and the versions behind it.

    Taken at release and again after the run: a ConfigMap or an input that changed in between makes
    them differ, and then nobody knows what the step really read.
    """
    return hashlib.sha256(frame("memopod-inputs-2", key.digest, canonical(versions))).hexdigest()


def with_template(step: Step, template: Mapping[str, Any]) -> Step:
    """The step with the template that Argo had offloaded."""
    return replace(step, template=template)


def check_keyable(step: Step, rules: KeyRules = KeyRules()) -> None:
    """Raise Unkeyable for a step whose result is not decided by what a key can hold.

    An offloaded template is checked as far as the Pod tells; check again once it was read.
    """
    if step.annotations.get(names.ALLOW_VOLUMES) != "true":
        counted = counted_containers(step, rules.ignored_containers)
        if unknown_volumes(counted_volumes(step.pod, counted)):
            raise Unkeyable("volume")
    template = step.template
    if template is None:
        return
    if template.get("resource"):
        raise Unkeyable("template-resource")
    if template.get("daemon"):
        raise Unkeyable("template-daemon")
    if template.get("memoize"):
        raise Unkeyable("template-memoized")
    if not any(template.get(kind) for kind in ("container", "script", "containerSet")):
        raise Unkeyable("template-kind")
    if names_run(output_keys(template), step):
        raise Unkeyable("output-key-names-run")


def output_keys(template: Mapping[str, Any]) -> list[str]:
    """Keys in object stores that a template's output artifacts name."""
    artifacts = (template.get("outputs") or {}).get("artifacts") or ()
    return [str(a[kind].get(KINDS[kind][2], "")) for a in artifacts if (kind := kind_of(a))]


def names_run(keys: Iterable[str], run: Run) -> bool:
    """Whether one of the keys holds a name of the run as a word, so that no other run writes to it.

    A part of a word is none: a Workflow named `data` has nothing to do with `metadata/x`.
    """
    own = [name for name in (run.workflow, run.workflow_uid, run.pod_name) if name]
    return any(name in key and _has_word(key, name) for key in keys for name in own)


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", text) is not None


def component_digest(value: Any) -> str:
    """The short digest of one component."""
    return hashlib.sha256(canonical(value)).hexdigest()[:16]


def _key(components: Mapping[str, Any]) -> Key:
    return Key(_digest(components), lambda: components)


def _digest(components: Mapping[str, Any]) -> str:
    # A JSON object frames its members: no two different sets of components have one text.
    return hashlib.sha256(frame("memopod-key", str(KEY_VERSION), canonical(components))).hexdigest()
