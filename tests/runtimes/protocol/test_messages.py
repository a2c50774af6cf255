"""Tensors cross unchanged; whatever else comes is refused with one sentence."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from offload.bundle.bundle import ModelValue
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError
from offload_runtimes.protocol import kserve_pb2
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.messages import ProtocolError
from offload_runtimes.protocol.tensor_specs import TensorSpec, TensorSpecs

from tests.runtimes.tensor_messages import encode_tensor

TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
    "float64": "tensor(double)",
}


def specs(array: np.ndarray, encoding: str = "raw") -> TensorSpecs:
    return TensorSpecs(
        {"t": TensorSpec(ModelValue("t", TYPES[array.dtype.name], None), encoding, array.nbytes)}
    )


@given(
    array=st.sampled_from(list(TYPES)).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))
    ),
    frame=st.integers(1, 2**64 - 1),
    encoding=st.sampled_from(["raw", "zstd", "planes"]),
)
def test_tensor_round_trip(array: np.ndarray, frame: int, encoding: str) -> None:
    message, data = wire.parse(encode_tensor(frame, "t", array, encoding, 1.5))
    header, back = wire.decode_tensor(message.tensor, data, specs(array, encoding))
    assert header.name == "t"
    assert message.tensor.frame == frame
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_views_and_big_endian_arrays_arrive_with_their_values() -> None:
    for array in (np.arange(12).reshape(3, 4).T, np.arange(3, dtype=">i8")):
        message, data = wire.parse(encode_tensor(1, "t", array, "raw"))
        _, back = wire.decode_tensor(message.tensor, data, specs(array))
        np.testing.assert_array_equal(back, array)


def test_a_decoded_tensor_is_an_aligned_view_of_the_message() -> None:
    array = np.arange(300, dtype=np.float64)
    arrived = encode_tensor(1, "t", array, "raw")
    message, data = wire.parse(arrived)
    _, back = wire.decode_tensor(message.tensor, data, specs(array))
    assert np.shares_memory(back, np.frombuffer(arrived, np.uint8))
    assert back.ctypes.data % 16 == 0
    assert not back.flags.writeable


SHAPE = (2, 3)
SPECS = TensorSpecs(
    {
        "t": TensorSpec(ModelValue("t", "tensor(float)", ("n", 3)), "raw", 4 * 2 * 3),
        "z": TensorSpec(ModelValue("z", "tensor(float)", ("n", 3)), "zstd", 4 * 2 * 3),
    }
)


def tensor(data: bytes = bytes(24), **changes: object) -> tuple[pb.Tensor, memoryview]:
    right = {"name": "t", "dtype": "<f4", "shape": SHAPE, "encoding": "raw"}
    layout = pb.Layout(**{**right, **changes}).SerializeToString()  # type: ignore[arg-type]
    made = pb.Tensor(frame=1, layout=layout)
    made.checksum = checksum(made, data)
    return made, memoryview(data)


def checksum(made: pb.Tensor, data: bytes) -> int:
    """As `offload.proto` defines it, word by word."""
    head = f"{made.frame}|{made.plan}|".encode() + made.layout
    if len(data) <= 16384:
        return zlib.crc32(head + data)
    padded = data + bytes(-len(data) % 8)
    words = sum(int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8))
    return (words + zlib.crc32(head)) % 2**64


@pytest.mark.parametrize("size", [0, 7, 16384, 16385, 100_001])
def test_the_checksum_matches_the_format(size: int) -> None:
    array = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    message, data = wire.parse(encode_tensor(2**60, "t", array, "raw", plan=3))
    assert bytes(data) == array.tobytes()
    assert message.tensor.checksum == checksum(message.tensor, bytes(data))


def test_headers_are_cached_up_to_a_limit() -> None:
    known = specs(np.zeros(10**6, np.float32))
    for size in range(1000):
        message, data = wire.parse(encode_tensor(1, "t", np.zeros(size, np.float32), "raw"))
        assert wire.decode_tensor(message.tensor, data, known)[1].shape == (size,)
    assert 0 < len(known.headers) < 1000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "u"}, "'u' is not one this bundle sends"),
        ({"dtype": "<f8"}, r"must be float32\[nx3\], not <f8\[2x3\]"),
        ({"dtype": "object"}, "not object"),
        ({"shape": (2, 4)}, r"not <f4\[2x4\]"),
        ({"shape": (6,)}, r"not <f4\[6\]"),
        ({"shape": (3, 3), "data": bytes(36)}, "takes 36 bytes, allowed are 24"),
        ({"shape": (2**60, 3)}, "allowed are 24"),
        ({"encoding": "zstd"}, "came as 'zstd', not as 'raw'"),
        ({"encoding": "pickle"}, "came as 'pickle'"),
        ({"data": bytes(23)}, "damaged: 23 bytes came, 24 were expected"),
        ({"data": b""}, "damaged"),
        ({"name": "z", "encoding": "zstd", "data": b"not zstd"}, "damaged"),
    ],
)
def test_wrong_tensor_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    wire.decode_tensor(*tensor(), SPECS)
    with pytest.raises(ProtocolError, match=said) as caught:
        wire.decode_tensor(*tensor(**changes), SPECS)
    assert "\n" not in str(caught.value)


def test_a_tensor_of_an_unknown_dtype_is_refused_where_float64_is_expected() -> None:
    """numpy compares float64 as equal to None."""
    spec = TensorSpec(ModelValue("t", "tensor(double)", None), "raw", 100)
    with pytest.raises(ProtocolError, match=r"must be float64.*, not <f9"):
        wire.decode_tensor(*tensor(dtype="<f9"), TensorSpecs({"t": spec}))


@given(data=st.binary(max_size=400))
def test_random_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        message, payload = wire.parse(data)
    except ProtocolError:
        return
    if message.WhichOneof("body") == "tensor":
        with pytest.raises(ProtocolError):
            wire.decode_tensor(message.tensor, payload, SPECS)


@given(data=st.data())
def test_damaged_bytes_never_become_other_numbers(data: st.DataObject) -> None:
    message = bytearray(encode_tensor(1, "t", np.zeros(SHAPE, np.float32), "raw"))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        parsed, payload = wire.parse(bytes(message))
        if parsed.WhichOneof("body") == "tensor":
            _, back = wire.decode_tensor(parsed.tensor, payload, SPECS)
            assert back.tobytes() == bytes(24)
            assert parsed.tensor.frame == 1
    except ProtocolError as error:
        assert str(error)  # noqa: PT017  refused is as right as read


@pytest.mark.parametrize("kind", [InputError, BundleError, ServerError, DeadlineError])
def test_errors_keep_their_kind_and_sentence(kind: type[OffloadError]) -> None:
    message, _ = wire.parse(wire.encode_failure(kind("it broke"), 3))
    assert message.failure.frame == 3
    error = wire.decode_failure(message.failure, "here:1")
    assert type(error) is kind
    assert str(error) == "server here:1: it broke"


def clear_json_names(message: DescriptorProto) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        clear_json_names(nested)


@pytest.mark.parametrize(
    ("name", "generated"), [("offload.proto", pb), ("kserve.proto", kserve_pb2)]
)
def test_generated_classes_are_up_to_date(tmp_path: Path, name: str, generated: Any) -> None:
    folder = Path(pb.__file__).parent
    target = tmp_path / "set"
    command = ["protoc", f"-I{folder}", f"--descriptor_set_out={target}", name]
    assert protoc.main(command) == 0
    (source,) = FileDescriptorSet.FromString(target.read_bytes()).file
    made = FileDescriptorProto.FromString(generated.DESCRIPTOR.serialized_pb)
    for descriptor in (source, made):
        for message in descriptor.message_type:
            clear_json_names(message)
    assert made == source, "run `make proto`"


def test_kserves_messages_leave_the_default_pool_to_other_packages() -> None:
    """tritonclient registers other files with the same names there."""
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
