"""Property values of MLMD nodes as Python values, and back."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from ml_metadata.proto import metadata_store_pb2

PropertyValue = str | int | float | bool | dict[str, Any]
"""What a property can hold: a dict is a protobuf Struct. A protobuf `Any` (proto_value) reads as its dict."""

_INT = range(-(2**63), 2**63)


def to_value(value: PropertyValue) -> metadata_store_pb2.Value:
    """A Python value as a property value. Raises TypeError or ValueError for what MLMD cannot hold."""
    match value:
        case bool():
            return metadata_store_pb2.Value(bool_value=value)
        case int():
            if value not in _INT:
                raise ValueError("expected an integer of at most 64 bits")
            return metadata_store_pb2.Value(int_value=value)
        case float():
            return metadata_store_pb2.Value(double_value=value)
        case str():
            return metadata_store_pb2.Value(string_value=value)
        case dict():
            result = metadata_store_pb2.Value()
            json_format.ParseDict(value, result.struct_value)
            return result
    raise TypeError(f"expected str, int, float, bool or dict, got {type(value).__name__}")


def from_value(value: metadata_store_pb2.Value) -> PropertyValue | None:
    """A property value as a Python value; None if it holds none."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    held = getattr(value, kind)
    if kind == "struct_value":
        return dict(json_format.MessageToDict(held))
    if kind == "proto_value":
        # The message's type is rarely known here, so it is not unpacked.
        return {"type_url": held.type_url, "value": held.value.hex()}
    result: PropertyValue = held
    return result


def from_properties(properties: Mapping[str, metadata_store_pb2.Value]) -> dict[str, PropertyValue]:
    """A node's properties or custom properties; those without a value are left out."""
    read = {name: from_value(value) for name, value in properties.items()}
    return {name: value for name, value in read.items() if value is not None}
