"""What a layer is: memory, Redis and SQL are asked in this order, through one Protocol."""

from dataclasses import dataclass
from typing import Protocol

from cache_server.entries.entry import Entry


@dataclass(frozen=True, slots=True)
class Reading:
    """What the database held at one moment: what stands under a key, if anything, and the
    namespace's token (see `cache_server.entries.tokens`), None where nothing was ever stored.
    """

    entry: Entry | None
    token: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """What is asked for. `token` is the one that the namespace has now, None if that is not known."""

    namespace: str
    key: str
    token: str | None


class Layer(Protocol):
    """A keeper of readings. Only SQL knows them all; the others may forget any of them at any time.

    Whatever `look` raises, and however long it takes, costs no more than the layer's turn.
    """

    name: str

    async def look(self, place: Place) -> Reading | None:
        """The reading of this place that was made with this very token; None if it is not known here.

        SQL answers whatever the token, and with the one that stands.
        """

    async def keep(self, place: Place, reading: Reading) -> None:
        """Remember a reading, under its own token."""
