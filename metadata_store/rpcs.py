"""The RPCs of the service, derived from its descriptor and from what the core's binding can do."""

from functools import cache
from typing import Any

from google.protobuf.message_factory import GetMessageClass
from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store as binding
from ml_metadata.proto import metadata_store_service_pb2

_SERVICE = metadata_store_service_pb2.DESCRIPTOR.services_by_name["MetadataStoreService"]

SERVICE: str = _SERVICE.full_name
"""The service's name on the wire."""

RPCS: tuple[str, ...] = tuple(method.name for method in _SERVICE.methods)
"""Every RPC that the service declares."""

OF_CORE: frozenset[str] = frozenset(name for name in RPCS if hasattr(binding, name))
"""The RPCs that the core's binding has."""

RELATIVES: dict[str, tuple[str, str]] = {
    "GetParentContextsByContexts": ("GetParentContextsByContext", "parent_contexts"),
    "GetChildrenContextsByContexts": ("GetChildrenContextsByContext", "children_contexts"),
}
"""RPCs about several contexts that it lacks: the one about a single context, and the answer's field."""

SERVED: frozenset[str] = OF_CORE | RELATIVES.keys()
"""The RPCs that are answered; the others (GetLineageGraph) are UNIMPLEMENTED."""

LISTS: frozenset[str] = frozenset(
    method.name
    for method in _SERVICE.methods
    if "next_page_token" in method.output_type.fields_by_name
    and "options" in method.input_type.fields_by_name
)
"""The RPCs that take ListOperationOptions."""


def writes(rpc: str) -> bool:
    """Whether the RPC may change the database. All others are reads, which may be repeated."""
    return rpc.startswith("Put")


@cache
def request_of(rpc: str) -> Any:
    """The class of the RPC's request."""
    return GetMessageClass(_SERVICE.methods_by_name[rpc].input_type)


@cache
def response_of(rpc: str) -> Any:
    """The class of the RPC's response."""
    return GetMessageClass(_SERVICE.methods_by_name[rpc].output_type)
