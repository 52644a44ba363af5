"""The reads of `ml_metadata.MetadataStoreService`, by name: what the reading port passes on."""

from typing import Final

_KINDS: Final = ("Artifact", "Execution", "Context")

QUICK: Final = frozenset(
    name for kind in _KINDS for name in (f"Get{kind}Type", f"Get{kind}ByTypeAndName")
)  # fmt: skip
"""Those that answer one type or one node: over at once, and too small for a slow reader to hold up."""

READS: Final = (
    QUICK
    | {
        name
        for kind in _KINDS
        for name in (
            f"Get{kind}Types", f"Get{kind}TypesByID", f"Get{kind}TypesByExternalIds",
            f"Get{kind}s", f"Get{kind}sByID", f"Get{kind}sByType", f"Get{kind}sByExternalIds",
        )
    }
    | {
        "GetArtifactsByURI", "GetEventsByExecutionIDs", "GetEventsByArtifactIDs",
        "GetContextsByArtifact", "GetContextsByExecution", "GetArtifactsByContext", "GetExecutionsByContext",
        "GetParentContextsByContext", "GetChildrenContextsByContext",
        "GetParentContextsByContexts", "GetChildrenContextsByContexts",
        "GetLineageGraph", "GetLineageSubgraph",
    }
)  # fmt: skip
"""All of them, exactly: a name that is no RPC is told so here, and Envoy counts nothing under it."""
