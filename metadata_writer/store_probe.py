"""Whether the store answers: asked now and then, and at once when a call failed."""

import asyncio
from typing import Final

import structlog
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient, StoreError
from metadata_writer import metrics

_STEADY: Final = 5.0
"""Seconds between two looks while the store answers."""
_AWAY: Final = 0.5
"""The same while it does not: nobody else asks then, so this is all its load."""
_PATIENCE: Final = 3.0
"""Seconds for the answer to an empty question."""


class StoreProbe:
    """`up` is set while the store answers; whoever needs it waits for that instead of trying."""

    def __init__(self, store: StoreClient) -> None:
        self._store = store
        self._asking = asyncio.Lock()
        self._log = structlog.get_logger()
        self._answers: bool | None = None
        self.up = asyncio.Event()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            answers = await self.ask()
            await asyncio.sleep(_STEADY if answers else _AWAY)

    async def ask(self) -> bool:
        """Whether the store answers at this moment."""
        async with self._asking:
            await self._ask()
        metrics.STORE_UP.set(self.up.is_set())
        return self.up.is_set()

    async def _ask(self) -> None:
        try:
            await self._store.call("GetArtifactsByID", service.GetArtifactsByIDRequest(), timeout=_PATIENCE)
        except StoreError as error:
            self.up.clear()
            if self._answers is not False:
                self._log.warning("the store does not answer", error=str(error))
            self._answers = False
            return
        if self._answers is not True:
            self._log.info("the store answers")
        self._answers = True
        self.up.set()
