"""Whether the object stores answer: a metric for alerts, and for `memopod install check`."""

import asyncio

import structlog
from prometheus_client import Gauge

from cache_server.artifacts import Artifacts, ArtifactStoreUnavailable
from memopod.steps.locations import Location

_UP = Gauge(
    "memopod_object_store_up", "1 if an object store answered the last question about a bucket, else 0.",
    ["store"],
)  # fmt: skip
_NOBODY = "memopod-asks-whether-this-store-answers"
_log = structlog.get_logger()


async def ask_regularly(artifacts: Artifacts, *, seconds: float = 30.0) -> None:
    """Ask each configured bucket for an object that nobody has; runs until cancelled."""
    answered: dict[tuple[str, str], bool] = {}
    while True:
        for endpoint, bucket in artifacts.stores:
            place = endpoint, bucket
            try:
                await artifacts.describe(Location("s3", endpoint, bucket, _NOBODY))
                up = True
            except ArtifactStoreUnavailable as error:
                up = False
                if answered.get(place, True):
                    _log.warning("an object store does not answer", cause=str(error))
            answered[place] = up
            _UP.labels(f"{endpoint}/{bucket}").set(up)
        await asyncio.sleep(seconds)
