"""The ids of the types that records need: put once each, then remembered."""

from collections.abc import Iterable

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import StoreClient
from metadata_writer.known import TypeIds
from metadata_writer.records import PIPELINE_TYPE, RUN_TYPE, StepRecord

_RUN_PROPERTIES = ("pipeline_name", "run_id")
_RUN, _PIPELINE = ("context", RUN_TYPE), ("context", PIPELINE_TYPE)
_EXECUTION_PROPERTIES = (*_RUN_PROPERTIES, "component_id")


class TypeRegistry:
    """Remembers ids until told to `forget`, which is due whenever the store may be another one."""

    def __init__(self, store: StoreClient) -> None:
        self._store = store
        self._ids: dict[tuple[str, str], int] = {}

    def forget(self) -> None:
        """Ask again for everything: in a store that was wiped an id may mean another type."""
        self._ids.clear()

    async def ids(self, records: Iterable[StepRecord]) -> TypeIds:
        """The types of records, put where this process has not put them yet. Raises StoreError."""
        wanted: dict[tuple[str, str], None] = dict.fromkeys((_RUN, _PIPELINE))
        for record in records:
            wanted["execution", record.type_name] = None
            wanted.update((("artifact", output.type_name), None) for output in record.outputs)
        missing = [key for key in wanted if key not in self._ids]
        # Another task may `forget` while this one waits: what was just learnt is still used.
        ids = {**self._ids, **await self._put(missing)} if missing else self._ids
        return TypeIds(
            run=ids[_RUN],
            pipeline=ids[_PIPELINE],
            executions={name: ids[kind, name] for kind, name in wanted if kind == "execution"},
            artifacts={name: ids[kind, name] for kind, name in wanted if kind == "artifact"},
        )

    async def _put(self, missing: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
        # A store filled by other writers may know more properties of a type: both ways are allowed.
        request = service.PutTypesRequest(can_add_fields=True, can_omit_fields=True)
        for kind, name in missing:
            if kind == "context":
                properties = _strings(_RUN_PROPERTIES) if name == RUN_TYPE else {}
                request.context_types.add(name=name, properties=properties)
            elif kind == "execution":
                request.execution_types.add(name=name, properties=_strings(_EXECUTION_PROPERTIES))
            else:
                request.artifact_types.add(name=name)
        answer = await self._store.call("PutTypes", request)
        found: dict[tuple[str, str], int] = {}
        for kind in ("context", "execution", "artifact"):
            names = [name for of_kind, name in missing if of_kind == kind]
            for name, type_id in zip(names, getattr(answer, f"{kind}_type_ids"), strict=True):
                found[kind, name] = type_id
        self._ids.update(found)
        return found


def _strings(names: tuple[str, ...]) -> dict[str, int]:
    return dict.fromkeys(names, mlmd.STRING)
