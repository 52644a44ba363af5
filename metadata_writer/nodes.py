"""The nodes of Workflows, and the Workflows whose nodes cannot be read."""

from collections.abc import Mapping
from typing import Any

import structlog

from memopod.steps.outputs import NodesOffloaded, workflow_nodes

Node = Mapping[str, Any]


class Nodes:
    """Reads nodes, and tells once of each Workflow that shows none. `own` is the digest of its UID."""

    def __init__(self) -> None:
        self._unreadable: set[bytes] = set()
        self._log = structlog.get_logger()

    def __len__(self) -> int:
        """Workflows whose nodes are in Argo's own database, or broken."""
        return len(self._unreadable)

    def unreadable(self, own: bytes) -> bool:
        """Whether a Workflow's Pods alone speak for its steps."""
        return own in self._unreadable

    def forget(self, own: bytes) -> None:
        """A Workflow is gone."""
        self._unreadable.discard(own)

    def read(self, own: bytes, workflow: Mapping[str, Any]) -> Mapping[str, Node]:
        """A Workflow's nodes by id; none where they cannot be read."""
        if "status" not in workflow:
            return {}
        try:
            nodes = workflow_nodes(workflow)
            if not all(isinstance(node, dict) for node in nodes.values()):
                raise TypeError("a node that is no object")  # noqa: TRY301 (one place tells of all)
        except NodesOffloaded as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 (nobody validates a Workflow: one may hold anything)
            reason = f"its nodes cannot be read: {type(error).__name__}"
        else:
            self._unreadable.discard(own)
            return nodes
        if own not in self._unreadable:
            self._unreadable.add(own)
            name = workflow["metadata"]["name"]
            self._log.warning("steps whose Pods are gone cannot be closed", workflow=name, error=reason)
        return {}
