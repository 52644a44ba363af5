"""Questions to the metadata store: what ran, what happened in a run, where a result comes from, and what
depends on it.

`runs`, `show`, `up` and `down` read through a `memopod.mlmd.StoreClient` and give frozen values;
`memopod.lineage.render` turns these into trees, tables, JSON and diagrams.
"""

from memopod.lineage.errors import Ambiguous, BadReference, LineageError, NotRecorded
from memopod.lineage.model import Direction, Graph, Relation, RunList, RunReport, State
from memopod.lineage.runs import as_graph, runs, show
from memopod.lineage.trace import DEPTH, LIMIT, down, up

__all__ = [
    "DEPTH",
    "LIMIT",
    "Ambiguous",
    "BadReference",
    "Direction",
    "Graph",
    "LineageError",
    "NotRecorded",
    "Relation",
    "RunList",
    "RunReport",
    "State",
    "as_graph",
    "down",
    "runs",
    "show",
    "up",
]
