"""The context of each run: looked up or made once, then remembered.

Its name is the workflow's, as with Kubeflow's writer, whose user interface asks for it by that name. Of
two namespaces with a workflow of the same name the one that is recorded first has the plain name; the
other's is `<namespace>/<workflow>`, which no workflow can be called. A workflow that is made again under
its name shares the context, as with Kubeflow's writer.
"""

import dataclasses
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from ml_metadata.proto import metadata_store_pb2 as mlmd
from ml_metadata.proto import metadata_store_service_pb2 as service

from memopod.mlmd import AlreadyExists, StoreClient
from metadata_writer.records import RUN_TYPE, Run

_NAMESPACE: Final = "namespace"
_REMEMBERED: Final = 10_000
"""Runs; one that is forgotten costs one more question."""


class RunContext(NamedTuple):
    """`message` makes the store find the context by type and name, and leave it as it is."""

    id: int
    message: Any


class RunRegistry:
    """Remembers contexts until told to `forget`, which is due whenever the store may be another one."""

    def __init__(self, store: StoreClient) -> None:
        self._store = store
        self._found: OrderedDict[Run, RunContext] = OrderedDict()

    def forget(self) -> None:
        """Ask again for everything."""
        self._found.clear()

    async def context(self, run: Run, type_id: int) -> RunContext:
        """The run's context, made where there is none. Raises StoreError."""
        run = dataclasses.replace(run, pipeline=None)
        if run not in self._found:
            self._found[run] = await self._find(run, type_id)
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return self._found[run]

    async def _find(self, run: Run, type_id: int) -> RunContext:
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
                    return RunContext(answer.context_ids[0], message)
            if there is not None and _namespace(there) in ("", run.namespace):
                break
        return RunContext(there.id if there is not None else 0, message)

    async def _look_up(self, name: str) -> Any | None:
        request = service.GetContextByTypeAndNameRequest(type_name=RUN_TYPE, context_name=name)
        answer = await self._store.call("GetContextByTypeAndName", request)
        return answer.context if answer.HasField("context") else None


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
