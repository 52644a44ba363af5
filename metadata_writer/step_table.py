"""All steps of which there is a Pod or a node: the open ones by name, the settled ones by digests."""

import sys
from dataclasses import dataclass

from metadata_writer.settled import NO_POD, WORKFLOW, Mark, Settled, digest
from metadata_writer.sighting import ObjectRef, StepKey


@dataclass(slots=True)
class Step:
    """A step that is not recorded as it was last seen. `pod_digest` is known of a Pod whose name is not."""

    namespace: str
    workflow: str
    pod: ObjectRef | None = None
    pod_digest: bytes = NO_POD
    pod_facts: int = 0
    node_facts: int = 0
    version: int = 0


class StepTable:
    """A step is open or settled, or not here."""

    def __init__(self) -> None:
        self._open: dict[str, dict[str, Step]] = {}
        self._keys: dict[bytes, StepKey] = {}
        self._uids: dict[bytes, str] = {}
        self.settled = Settled()

    def __len__(self) -> int:
        return len(self._keys) + len(self.settled)

    def open_keys(self) -> list[StepKey]:
        """All open steps."""
        return list(self._keys.values())

    def open_count(self) -> int:
        """How many are open."""
        return len(self._keys)

    def get(self, key: StepKey) -> Step | None:
        """An open step."""
        return self._open.get(key[0], {}).get(key[1])

    def of(self, uid: str) -> dict[str, Step]:
        """The open steps of a Workflow, by node id."""
        return self._open.get(uid, {})

    def key(self, token: bytes) -> StepKey | None:
        """The open step with this token."""
        return self._keys.get(token)

    def uid(self, workflow: bytes) -> str | None:
        """The UID with this digest, of a Workflow that has open steps."""
        return self._uids.get(workflow)

    def open(self, key: StepKey, token: bytes, named: tuple[str, str]) -> Step:
        """The step, not settled from now on; `named` are namespace and name of its Workflow."""
        steps = self._open.setdefault(key[0], {})
        if key[1] not in steps:
            mark = self.settled.pop(token) or Mark(NO_POD, 0, 0)
            steps[key[1]] = Step(
                sys.intern(named[0]),
                named[1],
                pod_digest=mark.pod,
                pod_facts=mark.pod_facts,
                node_facts=mark.node_facts,
            )
            self._keys[token], self._uids[token[:WORKFLOW]] = key, key[0]
        return steps[key[1]]

    def settle(self, key: StepKey) -> None:
        """An open step is settled from now on."""
        uid, token = key[0], token_of(key)
        steps = self._open[uid]
        step = steps.pop(key[1])
        del self._keys[token]
        self.settled.put(token, Mark(step.pod_digest, step.pod_facts, step.node_facts))
        if not steps:
            del self._open[uid], self._uids[token[:WORKFLOW]]


def token_of(key: StepKey) -> bytes:
    """24 bytes for a step: 16 of its Workflow, 8 of its node."""
    return digest(key[0], WORKFLOW) + digest(key[1])
