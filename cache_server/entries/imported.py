"""Entries that were imported from a Kubeflow installation, and how they are found.

They stand in the same table as memopod's own, under a key of another kind: `kubeflow:`, `FORM`, and
Kubeflow's fingerprint of the step (`memopod.steps.kubeflow.fingerprint`), with `key_version` 0. An entry key
of memopod's is 64 hexadecimal digits and nothing else, so no look-up for a step held by its gate can meet
one of them. Only the placeholder mode asks for them, by `ImportedEntries`, after its own key has missed.

Kubeflow's fingerprint leaves out much that decides a step's result: scripts, `envFrom`, `workingDir`, what
a ConfigMap or an input artifact held at the time. So the import leaves steps out that it cannot tell from
others (see `cache_server.entries.kubeflow`), and `stands_for` compares the rest.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cache_server.entries.entry import Entries, Entry
from memopod.steps.components import template_components
from memopod.steps.identity import Identity
from memopod.steps.key import KEY_VERSION, component_digest

KEY_VERSION_IMPORTED: Final = 0
"""`Entry.key_version` of an imported entry."""

FORM: Final = f"{KEY_VERSION}.1"
"""What an imported entry's components are digests of, and so with which steps it can be compared: the rules
of memopod's key, and what is taken of a row (the number to raise when that changes). It is part of the key:
an entry of another form is never found, and the next import replaces it.
"""

ANY_FORM: Final = "kubeflow:"
"""How the key of every imported entry begins."""
THIS_FORM: Final = f"{ANY_FORM}{FORM}:"
"""How the key of an imported entry begins that can be found."""

_NONE_SECONDS: Final = 10.0
"""How late the first import into a namespace may be noticed: what it would have saved runs until then."""
_MOST_NAMESPACES: Final = 10_000


def imported_key(fingerprint: str) -> str:
    """The key that an imported entry stands under."""
    return THIS_FORM + fingerprint


def imported_components(template: Mapping[str, Any]) -> dict[str, str]:
    """`Entry.components` of an imported entry: digests of all that its row's template tells."""
    return {name: component_digest(value) for name, value in template_components(template).items()}


def stands_for(entry: Entry, identity: Identity) -> bool:
    """Whether the run of an imported entry was one of this very step, as far as anybody can tell.

    The template must be the row's in all that counts for a key of memopod's, and there must be nothing
    that the row does not tell of: no ConfigMap, input artifact, salt, or field read by the downward API.
    """
    template, components = identity.step.template, identity.key.components
    return (
        template is not None
        and identity.fixed
        and components["salt"] == component_digest("")
        and components["downward"] == component_digest([])
        and dict(entry.components) == imported_components(template)
    )


async def find_imported(entries: Entries, namespace: str, fingerprint: str) -> Entry | None:
    """The imported entry of a step with Kubeflow's `fingerprint`, None if there is none.

    Its `workflow`, `pod_name` and `node_id` are empty: Kubeflow does not tell which run it was.
    Raises EntriesUnavailable, as `Entries.find` does.
    """
    return await entries.find(namespace, imported_key(fingerprint))


def _is_imported(last_key: str | None) -> bool:
    # It sorts after every key of memopod's: those are hexadecimal.
    return last_key is not None and last_key.startswith(ANY_FORM)


class ImportedEntries:
    """The imported ones of `entries`. Of a namespace that had none, it is asked again after ten seconds."""

    def __init__(self, entries: Entries, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries = entries
        self._clock = clock
        self._none_until: dict[str, float] = {}

    async def find(self, namespace: str, fingerprint: str) -> Entry | None:
        """See `find_imported`."""
        if self._clock() < self._none_until.get(namespace, 0.0):
            return None
        found = await find_imported(self._entries, namespace, fingerprint)
        if found is None and not _is_imported(await self._entries.last_key(namespace)):
            if len(self._none_until) >= _MOST_NAMESPACES:
                self._none_until.clear()
            self._none_until[namespace] = self._clock() + _NONE_SECONDS
        return found
