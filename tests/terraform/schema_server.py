"""A Terraform provider that has the schema of a real one and nothing else.

`terraform validate` and `terraform test` with mocked providers ask a provider for its schema and whether a
configuration is right. What follows from the schema (unknown and missing arguments, wrong types, too many blocks)
Terraform finds alone. So a server that answers with a stored schema takes the place of a plugin of 100 MB from a
registry. What only the plugin checks, such as the spelling of a constant, it lets pass.

The protocol is Terraform's plugin protocol 5 over gRPC. Few of its messages are needed, so they are encoded here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

PROTOCOL = 5
_REGISTRIES = ("registry.terraform.io", "registry.opentofu.org")
_NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}


@contextmanager
def serve(schemas: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Serves providers until the block is left.

    Args:
        schemas: name of a provider of HashiCorp's to its schema, as 'terraform providers schema -json' has it.

    Yields:
        the value of TF_REATTACH_PROVIDERS with which Terraform and OpenTofu use these servers.
    """
    servers = {name: grpc.server(ThreadPoolExecutor(max_workers=4)) for name in schemas}
    attach = {}
    try:
        for name, server in servers.items():
            server.add_generic_rpc_handlers((_handlers(schemas[name]),))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            plugin = {
                "Protocol": "grpc",
                "ProtocolVersion": PROTOCOL,
                "Pid": os.getpid(),
                "Test": True,
                "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
            }
            attach |= {f"{registry}/hashicorp/{name}": plugin for registry in _REGISTRIES}
        yield json.dumps(attach)
    finally:
        for server in servers.values():
            server.stop(grace=None)


def _handlers(schema: Mapping[str, Any]) -> grpc.GenericRpcHandler:
    answer = _schema_response(schema)
    methods: dict[str, Callable[[bytes], bytes]] = {
        "GetSchema": lambda request: answer,
        # Request and response are one field, the configuration, which is accepted as it is.
        "PrepareProviderConfig": lambda request: request,
        # No diagnostics.
        "ValidateResourceTypeConfig": lambda request: b"",
        "ValidateDataSourceConfig": lambda request: b"",
        "Configure": lambda request: b"",
        "Stop": lambda request: b"",
    }
    # Without serializers gRPC passes the bytes of a message as they are.
    return grpc.method_handlers_generic_handler(
        "tfplugin5.Provider",
        {
            name: grpc.unary_unary_rpc_method_handler(lambda request, context, method=method: method(request))
            for name, method in methods.items()
        },
    )


def _schema_response(schema: Mapping[str, Any]) -> bytes:
    types = ((2, "resource_schemas"), (3, "data_source_schemas"))
    return _field(1, _schema(schema["provider"])) + b"".join(
        _field(number, _field(1, name) + _field(2, _schema(value)))
        for number, kind in types
        for name, value in schema.get(kind, {}).items()
    )


def _schema(schema: Mapping[str, Any]) -> bytes:
    return _field(1, schema["version"]) + _field(2, _block(schema["block"]))


def _block(block: Mapping[str, Any]) -> bytes:
    attributes = (_field(2, _attribute(*item)) for item in block.get("attributes", {}).items())
    blocks = (_field(3, _nested_block(*item)) for item in block.get("block_types", {}).items())
    return b"".join((*attributes, *blocks, _field(6, block.get("deprecated", False))))


def _attribute(name: str, attribute: Mapping[str, Any]) -> bytes:
    flags = ((4, "required"), (5, "optional"), (6, "computed"), (7, "sensitive"), (9, "deprecated"), (10, "write_only"))
    return (
        _field(1, name)
        + _field(2, json.dumps(attribute["type"]))
        + b"".join(_field(number, attribute.get(flag, False)) for number, flag in flags)
    )


def _nested_block(name: str, nested: Mapping[str, Any]) -> bytes:
    return (
        _field(1, name)
        + _field(2, _block(nested["block"]))
        + _field(3, _NESTING[nested["nesting_mode"]])
        + _field(4, nested.get("min_items", 0))
        + _field(5, nested.get("max_items", 0))
    )


def _field(number: int, value: bytes | str | int) -> bytes:
    """A field of a protobuf message: a number (also a truth value), or text, bytes or a message with its length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
