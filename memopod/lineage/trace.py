"""`up` and `down`: where something comes from, and what depends on it.

A question walks from execution to execution, a layer at a time; artifacts are what lies between.
Depth is therefore counted in steps of pipelines.

An artifact that was reused is an output of every execution that reused it, so following all of them
would lead from any run into all others. Hence two rules:

- *up* from an artifact that a step used: to the reused execution of the same run that handed it on,
  if there is one, and from there to what really ran; else to what really ran. Upwards from an
  artifact itself: to what really ran.
- *down* from a reused execution: to those users of its artifacts that belong to its own run. Down from
  what really ran, and from an artifact itself: to all users.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from memopod.lineage.downward import Down
from memopod.lineage.found import Found
from memopod.lineage.model import Artifact, Direction, Graph
from memopod.lineage.reader import Reader
from memopod.lineage.references import Start, resolve
from memopod.lineage.upward import Up
from memopod.lineage.walk import Reach, walk
from memopod.mlmd import StoreClient

DEPTH = 10
"""Steps that are followed unless told otherwise: deeper than most pipelines, still a readable tree."""
LIMIT = 500
"""Nodes that are taken in unless told otherwise: what a terminal can show, and a few dozen requests."""


async def up(
    client: StoreClient, reference: str, depth: int = DEPTH, *, limit: int = LIMIT, same_values: bool = True
) -> Graph:
    """Where the node that `reference` names comes from: what produced it, from what, and so on.

    `depth` counts steps, `limit` executions (and parameters); the graph's notes say when one was
    reached. `same_values` adds the edges of `memopod.lineage.values`.
    Raises LineageError for a reference that names no node, StoreError where the store does not answer.
    """
    reader = Reader(client)
    start = await resolve(reader, reference)
    return await _trace(Up(reader, start, same_values=same_values), start, depth, limit)


async def down(
    client: StoreClient, reference: str, depth: int = DEPTH, *, limit: int = LIMIT, same_values: bool = True
) -> Graph:
    """What depends on the node that `reference` names: who used or reused it, what that produced, and so on.

    Arguments and errors are those of `up`.
    """
    reader = Reader(client)
    start = await resolve(reader, reference)
    return await _trace(Down(reader, start, same_values=same_values), start, depth, limit)


class _Search(Protocol):
    direction: Direction
    found: Found

    async def neighbours(self, keys: Sequence[str]) -> Iterable[str]: ...


async def _trace(search: _Search, start: Start, depth: int, limit: int) -> Graph:
    search.found.node(start.node)
    reach = await walk([start.node.key], search.neighbours, depth=depth, limit=limit)
    reached = set(reach.reached)
    nodes = {
        key: node for key, node in search.found.nodes.items() if key in reached or isinstance(node, Artifact)
    }
    edges = tuple(edge for edge in search.found.edges if edge.source in nodes and edge.target in nodes)
    return Graph(
        direction=search.direction,
        roots=(start.node.key,),
        nodes=nodes,
        edges=edges,
        unfollowed=frozenset((*reach.at_depth, *reach.at_limit)),
        notes=(*_limits(reach, depth, limit), *search.found.notes),
    )


def _limits(reach: Reach[str], depth: int, limit: int) -> list[str]:
    notes = []
    if reach.at_depth:
        notes.append(f"stopped at depth {depth}: {_nodes(len(reach.at_depth))} not followed further")
    if reach.at_limit:
        notes.append(
            f"stopped at the limit of {limit}: at least {_nodes(reach.beyond)} left out, "
            f"{_nodes(len(reach.at_limit))} not followed to the end"
        )
    return notes


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
