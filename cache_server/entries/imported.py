"""Entries that were imported from a Kubeflow installation, and how they are found.

They stand in the same table as memopod's own, under a key of another kind: `kubeflow:` and Kubeflow's
fingerprint of the step (`memopod.steps.kubeflow.fingerprint`), with `key_version` 0. An entry key of
memopod's is 64 hexadecimal digits and nothing else, so no look-up for a step held by its gate can meet
one of them. Only the placeholder mode asks for them, by `find_imported`, after its own key has missed:
Kubeflow's fingerprint knows neither scripts nor `envFrom`, which is why the import leaves steps out that
it cannot tell from others (see `cache_server.entries.kubeflow`).
"""

from typing import Final

from cache_server.entries.entry import Entries, Entry

KEY_VERSION_IMPORTED: Final = 0
"""`Entry.key_version` of an imported entry."""

_PREFIX: Final = "kubeflow:"


def imported_key(fingerprint: str) -> str:
    """The key that an imported entry stands under."""
    return _PREFIX + fingerprint


async def find_imported(entries: Entries, namespace: str, fingerprint: str) -> Entry | None:
    """The imported entry of a step with Kubeflow's `fingerprint`, None if there is none.

    Its `workflow`, `pod_name` and `node_id` are empty: Kubeflow does not tell which run it was.
    Raises EntriesUnavailable, as `Entries.find` does.
    """
    return await entries.find(namespace, imported_key(fingerprint))
