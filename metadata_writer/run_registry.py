"""The context of each run: looked up or made once, then remembered.

Its name is the workflow's, as with Kubeflow's writer, whose user interface asks for it by that name. Of
two namespaces with a workflow of the same name the one that is recorded first has the plain name; the
other's is `<namespace>/<workflow>`, which no workflow can be called. A workflow that is made again under
its name shares the context, as with Kubeflow's writer.
"""

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import AlreadyExists, StoreClient
from metadata_writer.records import RUN_TYPE, Run

_NAMESPACE: Final = "namespace"
_PLAIN: Final = re.compile(r"[a-z0-9.-]+")
"""What Kubernetes calls a name; any other cannot be put into a query."""
_PAGE: Final = 100
_TRIES: Final = 3
"""Two batches often bring the first steps of one run; the second look finds what the other made."""
_REMEMBERED: Final = 4_000
"""Runs; one that is forgotten costs one more question."""


class RunContext(NamedTuple):
    """`message` makes the store find the context by type and name, and leave it as it is."""

    id: int
    message: Any


class RunRegistry:
    """Remembers contexts until told to `forget`, which is due whenever the store may be another one."""

    def __init__(self, store: StoreClient) -> None:
        self._store = store
        self._found: OrderedDict[Run, tuple[int, str]] = OrderedDict()

    def forget(self) -> None:
        """Ask again for everything."""
        self._found.clear()

    async def prepare(self, runs: Iterable[Run], type_id: int) -> None:
        """Learn or make the contexts of many runs by two calls; what is not that simple is left to `context`.

        Raises StoreError.
        """
        unknown: dict[str, Run] = {}
        for run in map(_bare, runs):
            if run not in self._found and _PLAIN.fullmatch(run.name):
                unknown.setdefault(run.name, run)
        names = list(unknown)[:_PAGE]
        for _ in range(_TRIES if len(names) > 1 else 0):
            there = await self._look_up_all(names)
            for name, context in there.items():
                if _namespace(context) in ("", unknown[name].namespace):
                    self._remember(unknown[name], context.id, name)
            missing = [name for name in names if name not in there]
            if not missing:
                return
            request = service.PutContextsRequest(
                contexts=[_message(unknown[name], name, type_id) for name in missing]
            )
            try:
                answer = await self._store.call("PutContexts", request)
            except AlreadyExists:
                continue  # somebody else made one of them meanwhile
            for name, context_id in zip(missing, answer.context_ids, strict=True):
                self._remember(unknown[name], context_id, name)
            return

    async def context(self, run: Run, type_id: int) -> RunContext:
        """The run's context, made where there is none. Raises StoreError."""
        run = _bare(run)
        if run not in self._found:
            self._remember(run, *await self._find(run, type_id))
        context_id, name = self._found[run]
        return RunContext(context_id, _message(run, name, type_id))

    def _remember(self, run: Run, context_id: int, name: str) -> None:
        self._found[run] = context_id, name
        if len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)

    async def _find(self, run: Run, type_id: int) -> tuple[int, str]:
        for name in (run.name, f"{run.namespace}/{run.name}"):
            message = _message(run, name, type_id)
            there = await self._look_up(name)
            if there is None:
                try:
                    answer = await self._store.call(
                        "PutContexts", service.PutContextsRequest(contexts=[message])
                    )
                except AlreadyExists:
                    there = await self._look_up(name)
                else:
                    return answer.context_ids[0], name
            if there is not None and _namespace(there) in ("", run.namespace):
                break
        return (there.id if there is not None else 0), name

    async def _look_up(self, name: str) -> Any | None:
        request = service.GetContextByTypeAndNameRequest(type_name=RUN_TYPE, context_name=name)
        answer = await self._store.call("GetContextByTypeAndName", request)
        return answer.context if answer.HasField("context") else None

    async def _look_up_all(self, names: Collection[str]) -> dict[str, Any]:
        quoted = ",".join(f"'{name}'" for name in names)
        request = service.GetContextsRequest()
        request.options.filter_query = f"type = '{RUN_TYPE}' AND name IN ({quoted})"
        request.options.max_result_size = _PAGE
        answer = await self._store.call("GetContexts", request)
        # On SQLite, where the core's "..." may be a column, a workflow called `name` matches all there are.
        return {context.name: context for context in answer.contexts if context.name in names}


def _bare(run: Run) -> Run:
    """The run without what does not name its context."""
    return dataclasses.replace(run, pipeline=None)


def _namespace(context: Any) -> str:
    """Empty for one that Kubeflow's writer made: it notes none."""
    return str(context.custom_properties[_NAMESPACE].string_value)


def _message(run: Run, name: str, type_id: int) -> Any:
    context = mlmd.Context(type_id=type_id, name=name)
    for property_name in ("pipeline_name", "run_id"):
        context.properties[property_name].string_value = run.name
    context.custom_properties[_NAMESPACE].string_value = run.namespace
    context.custom_properties["workflow_uid"].string_value = run.workflow_uid
    return context
