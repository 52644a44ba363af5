"""Which RPCs can be limited to namespaces, and an answer without what its caller may not read. Pure.

Derived from the service's descriptor: an RPC is answered if every field of its answer is of a kind that is
known here. So an RPC, or a field, that a later version of the service adds is refused until it is looked at.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from ml_metadata.proto import metadata_store_service_pb2

SERVICE: Final = metadata_store_service_pb2.DESCRIPTOR.services_by_name["MetadataStoreService"]

MESSAGES: Final[Mapping[str, tuple[type[Any], type[Any]]]] = {
    method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type))
    for method in SERVICE.methods
}
"""The classes of an RPC's request and answer, by its name."""

NODES: Final = {
    "ml_metadata.Artifact": "artifact",
    "ml_metadata.Execution": "execution",
    "ml_metadata.Context": "context",
    "ml_metadata.Event": "event",
}
_SHARED: Final = frozenset({
    "ml_metadata.ArtifactType", "ml_metadata.ExecutionType", "ml_metadata.ContextType",
    "ml_metadata.TransactionOptions",
})  # fmt: skip
"""Types are all namespaces' own: their names and those of their properties are not withheld. But which of
them come along with nodes tells of these, so the types of those that are withheld go with them.
"""

Readable = Mapping[str, Collection[int]]
"""The ids of the nodes that the caller may read, by kind: `artifact`, `execution`, `context`."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """An RPC that can be limited; `nodes` are the fields of its answer that hold nodes, and their kinds,
    `types` those that hold the types of these nodes.
    """

    name: str
    request: type[Any]
    response: type[Any]
    nodes: Mapping[str, str]
    types: Collection[str]

    def refusal(self, request: Any) -> str | None:
        """Why this request cannot be limited; None if it can."""
        # What a filter matches shows in the pages' tokens, even where all that it matches is withheld.
        if "options" in self.request.DESCRIPTOR.fields_by_name and request.options.filter_query:
            return "filter_query cannot be limited to a namespace"
        return None

    def start(self, request: Any) -> tuple[str, int] | None:
        """Kind and id of the one node whose neighbours are asked for; None for any other RPC."""
        for kind in ("context", "execution", "artifact"):
            if f"{kind}_id" in self.request.DESCRIPTOR.fields_by_name:
                return kind, getattr(request, f"{kind}_id")
        return None

    def nothing(self, request: Any) -> str | None:
        """What the store says, as NOT_FOUND, where there is nothing; None where it answers emptily then.

        Nobody shall learn from the difference that there is something that was withheld.
        """
        if self.name.endswith("ByExternalIds"):
            (field,) = self.nodes
            return f"No {field} found for external_ids."
        for kind in ("artifact", "execution"):
            if self.name == f"GetContextsBy{kind.title()}":
                return f"No contexts found for {kind}_id: {getattr(request, f'{kind}_id')}"
        return None

    def ids(self, answer: Any) -> dict[str, set[int]]:
        """The ids of all nodes that an answer shows or names, by kind."""
        found: dict[str, set[int]] = {"artifact": set(), "execution": set(), "context": set()}
        for field, kind in self.nodes.items():
            for node in _each(answer, field):
                if kind == "event":
                    found["artifact"].add(node.artifact_id)
                    found["execution"].add(node.execution_id)
                else:
                    found[kind].add(node.id)
        return found

    def limited(self, answer: Any, readable: Readable) -> int:
        """Take out of `answer` what may not be read; returns how many nodes and events that were."""
        withheld = 0
        for field, kind in self.nodes.items():
            shown = [node for node in _each(answer, field) if _shown(kind, node, readable)]
            missing = len(list(_each(answer, field))) - len(shown)
            if not missing:
                continue
            withheld += missing
            if _repeated(answer.DESCRIPTOR, field):
                kept = [type(node).FromString(node.SerializeToString()) for node in shown]
                answer.ClearField(field)
                getattr(answer, field).extend(kept)
            else:
                answer.Clear()  # as if there were no such node: its type goes too
        self._limit_types(answer)
        return withheld

    def _limit_types(self, answer: Any) -> None:
        shown = {node.type_id for field in self.nodes for node in _each(answer, field)} if self.types else ()
        for field in self.types:
            kept = [type(known).FromString(known.SerializeToString())
                    for known in _each(answer, field) if known.id in shown]  # fmt: skip
            answer.ClearField(field)
            getattr(answer, field).extend(kept)


def _each(answer: Any, field: str) -> list[Any]:
    if _repeated(answer.DESCRIPTOR, field):
        return list(getattr(answer, field))
    return [getattr(answer, field)] if answer.HasField(field) else []


def _repeated(descriptor: Descriptor, field: str) -> bool:
    return bool(descriptor.fields_by_name[field].label == FieldDescriptor.LABEL_REPEATED)


def _shown(kind: str, node: Any, readable: Readable) -> bool:
    if kind == "event":
        return node.artifact_id in readable["artifact"] and node.execution_id in readable["execution"]
    return node.id in readable[kind]


def _limitable(method: Any) -> Rpc | None:
    if not method.name.startswith("Get"):
        return None
    nodes: dict[str, str] = {}
    types: list[str] = []
    for field in method.output_type.fields:
        kind = field.message_type.full_name if field.message_type is not None else ""
        if kind in NODES:
            nodes[field.name] = NODES[kind]
        elif kind not in _SHARED and field.name != "next_page_token":
            return None
        elif kind.endswith("Type"):
            types.append(field.name)
    if not nodes:
        return Rpc(method.name, *MESSAGES[method.name], nodes, ())
    if not all(_repeated(method.output_type, field) for field in types):
        return None
    return Rpc(method.name, *MESSAGES[method.name], nodes, tuple(types))


LIMITED: Final[dict[str, Rpc]] = {
    method.name: rpc for method in SERVICE.methods if (rpc := _limitable(method)) is not None
}
"""The RPCs that are answered, by name; all others are refused."""
