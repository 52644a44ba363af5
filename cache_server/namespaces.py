"""What the annotations of a Namespace set for the steps in it, remembered for a short while."""

import time
from collections.abc import Mapping

from memopod.kube import NAMESPACES, Client, Forbidden, NotFound

_KEPT_SECONDS = 10.0
"""How late a change of the annotations may be noticed: one question each namespace and 10 s."""
_MOST = 10_000


class Namespaces:
    """Annotations of Namespaces, each asked for when it is needed."""

    def __init__(self, client: Client, *, needed: bool = True) -> None:
        """`needed`: whether annotations that must not be read stand in the way, or count as none."""
        self._client = client
        self._unreadable: Mapping[str, str] | None = None if needed else {}
        self._known: dict[str, tuple[float, Mapping[str, str] | None]] = {}

    async def annotations(self, name: str) -> Mapping[str, str] | None:
        """Annotations of the Namespace; None if they must not be read. Raises ApiError without an answer."""
        at, annotations = self._known.get(name, (0.0, None))
        if name in self._known and time.monotonic() - at < _KEPT_SECONDS:
            return annotations
        annotations = await self._read(name)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[name] = time.monotonic(), annotations
        return annotations

    async def _read(self, name: str) -> Mapping[str, str] | None:
        try:
            namespace = await self._client.get(NAMESPACES, name)
        except NotFound:
            return {}
        except Forbidden:
            return self._unreadable
        annotations: Mapping[str, str] = namespace["metadata"].get("annotations") or {}
        return annotations
