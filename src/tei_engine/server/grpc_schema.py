"""Reflection: which services there are and what their messages look like, for tools without our .proto file.

What it needs takes as long to import as the rest of the gRPC listener, so that is left to the first caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from types import ModuleType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_OLD, _NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"
NAMES = (f"{_NEW}.ServerReflection", f"{_OLD}.ServerReflection")
"""Two names of one service; newer tools ask for the first."""


def add_reflection(server: grpc.aio.Server, *generated: ModuleType) -> None:
    """Let `server` describe itself and the services in modules `generated` from .proto files without imports.

    Anybody may ask: there is no key.
    """

    async def info(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        messages, servicer = await asyncio.to_thread(_reflection, generated)

        async def read() -> AsyncIterator[Any]:
            async for raw in requests:
                try:
                    yield messages.ServerReflectionRequest.FromString(raw)
                except DecodeError:
                    context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
                    context.set_details("not a ServerReflectionRequest")
                    return

        async for answer in servicer.ServerReflectionInfo(read(), context):
            yield answer.SerializeToString()

    handler: Any = grpc.stream_stream_rpc_method_handler(info)  # bytes to bytes
    for name in NAMES:
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )


@cache
def _reflection(generated: tuple[ModuleType, ...]) -> tuple[Any, Any]:
    """The messages of reflection, and what answers them."""
    from google.protobuf import descriptor_pool
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    own: Any = reflection_pb2.DESCRIPTOR
    files = [module.DESCRIPTOR for module in generated]
    pool = descriptor_pool.DescriptorPool()  # a new one: our stubs are not in the common one
    for serialized in (*(file.serialized_pb for file in files), own.serialized_pb, _renamed(own)):
        pool.AddSerializedFile(serialized)
    services = [service.full_name for file in files for service in file.services_by_name.values()]
    return reflection_pb2, reflection.aio.ReflectionServicer([*services, *NAMES], pool)


def _renamed(file: Any) -> bytes:
    """The file of v1alpha as that of v1: the two differ in nothing but their names."""
    from google.protobuf import descriptor_pb2

    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    proto.name, proto.package = "grpc/reflection/v1/reflection.proto", _NEW
    for field in (field for message in proto.message_type for field in message.field if field.type_name):
        field.type_name = field.type_name.replace(_OLD, _NEW)
    for method in (method for service in proto.service for method in service.method):
        method.input_type = method.input_type.replace(_OLD, _NEW)
        method.output_type = method.output_type.replace(_OLD, _NEW)
    return proto.SerializeToString()
