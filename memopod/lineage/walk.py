"""Walking a graph that is read as one goes: layer by layer, so that a layer is one batch of reads."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Reach(Generic[K]):
    """What a walk reached, in order of discovery, each once.

    `at_depth` were reached but not followed because the depth was used up, `at_limit` because there
    were `limit` of them; `beyond` is how many were seen but not taken in.
    """

    reached: tuple[K, ...]
    at_depth: tuple[K, ...] = ()
    at_limit: tuple[K, ...] = ()
    beyond: int = 0


async def walk(
    start: Iterable[K],
    neighbours: Callable[[Sequence[K]], Awaitable[Iterable[K]]],
    *,
    depth: int,
    limit: int,
) -> Reach[K]:
    """Follow `neighbours` (of a whole layer at once) for up to `depth` layers and `limit` nodes.

    Every node is asked for its neighbours at most once, so a cycle ends by itself. The start is
    always taken in, even if it is more than `limit`.
    """
    seen = dict.fromkeys(start)
    layer = list(seen)
    for _ in range(depth):
        if not layer:
            break
        found = dict.fromkeys(node for node in await neighbours(layer) if node not in seen)
        room = max(0, limit - len(seen))
        if len(found) > room:
            taken = list(found)[:room]
            return Reach(
                reached=(*seen, *taken),
                at_limit=(*layer, *taken),
                beyond=len(found) - room,
            )
        seen.update(found)
        layer = list(found)
    return Reach(reached=tuple(seen), at_depth=tuple(layer))
