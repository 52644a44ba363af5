"""Which texts the core may be given: UTF-8 without NUL characters, found at the speed of a parser.

The service's messages are proto2, whose parsers take any bytes for a text. The core stores them: whoever
lists them after that gets an answer that is no text, for ever. And what follows a NUL is lost, so that two
names become one. Here the same messages are described as proto3, whose parser refuses what is not UTF-8, and
whose serializer leaves out zeros, so that few requests without a NUL have that byte left.
"""

from functools import cache
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, field_mask_pb2, struct_pb2
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from ml_metadata.proto import metadata_store_pb2, metadata_store_service_pb2

from metadata_store.rpcs import SERVICE


def utf8(rpc: str, request: bytes) -> bytes | None:
    """A request whose texts are UTF-8, without its zeros and empty texts; None for any other."""
    try:
        return bytes(_twin(rpc).FromString(request).SerializeToString())
    except DecodeError:
        return None


@cache
def _twin(rpc: str) -> Any:
    return GetMessageClass(_pool().FindServiceByName(SERVICE).methods_by_name[rpc].input_type)


@cache
def _pool() -> Any:
    pool: Any = descriptor_pool.DescriptorPool()
    for module in (descriptor_pb2, any_pb2, struct_pb2, field_mask_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    for module in (metadata_store_pb2, metadata_store_service_pb2):
        file = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        file.syntax = "proto3"
        del file.extension[:]
        for enum in file.enum_type:
            _plain_enum(enum)
        for message in file.message_type:
            _plain_message(message)
        pool.Add(file)
    return pool


def _plain_message(message: descriptor_pb2.DescriptorProto) -> None:
    """Without what proto3 has not."""
    del message.extension[:]
    del message.oneof_decl[:]  # a zero in one of them would be written
    for field in message.field:
        field.ClearField("default_value")
        field.ClearField("oneof_index")
    for enum in message.enum_type:
        _plain_enum(enum)
    for inner in message.nested_type:
        _plain_message(inner)


def _plain_enum(enum: descriptor_pb2.EnumDescriptorProto) -> None:
    for value in enum.value:
        value.ClearField("options")
