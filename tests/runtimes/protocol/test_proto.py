"""The committed Python classes are what `offload.proto` says."""

from pathlib import Path

import offload_runtimes.protocol.offload_pb2 as pb
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc


def test_generated_classes_are_up_to_date(tmp_path: Path) -> None:
    folder = Path(pb.__file__).parent
    target = tmp_path / "set"
    command = ["protoc", f"-I{folder}", f"--descriptor_set_out={target}", "offload.proto"]
    assert protoc.main(command) == 0
    (source,) = FileDescriptorSet.FromString(target.read_bytes()).file
    made = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    for descriptor in (source, made):
        for field in (field for message in descriptor.message_type for field in message.field):
            field.ClearField("json_name")
    assert made == source, "run `make proto`"
