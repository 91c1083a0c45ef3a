"""The generated messages are those of the .proto files, whichever protoc is at hand."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from atoll.transport import atoll_pb2
from atoll.wire import wire_pb2

SRC = Path(wire_pb2.__file__).parents[2]


def fields(file: FileDescriptorProto) -> list[object]:
    """All that reaches the wire; protoc adds JSON names to one of the two descriptors."""
    enums = [(e.name, [(v.name, v.number) for v in e.value]) for e in file.enum_type]
    messages = [
        (m.name, [(f.name, f.number, f.label, f.type, f.type_name) for f in m.field])
        for m in file.message_type
    ]
    return [file.package, file.syntax, enums, messages]


@pytest.mark.parametrize("module", [wire_pb2, atoll_pb2], ids=lambda module: module.__name__)
def test_generated_code_is_current(module: Any, tmp_path: Path) -> None:
    if find_spec("grpc_tools") is None:
        pytest.skip("needs grpcio-tools")
    made = tmp_path / "set"
    # In a process of its own: beside PyTorch, ONNX Runtime and scikit-learn, TenSEAL does not load after it.
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SRC}", f"--descriptor_set_out={made}"]
    subprocess.run([*protoc, module.DESCRIPTOR.name], check=True)
    (now,) = FileDescriptorSet.FromString(made.read_bytes()).file
    committed = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    assert fields(committed) == fields(now), "a .proto changed: run tools/wire"
