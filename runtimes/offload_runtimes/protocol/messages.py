"""Messages to bytes and back; everything that comes in is checked against a contract.

The format is `offload.proto`. Tensors are raw little-endian bytes in C order or what a codec
makes of them; text, sequences and maps are `wire.structured`. Nothing is ever unpickled or
executed.
"""

import functools
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from offload.costs.encodings import RAW
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.engine import DTYPES, UNKNOWN, as_feed, shape_fits, show_shape
from offload_runtimes.protocol import structured_values as structured
from offload_runtimes.protocol.codecs import Buffer, codec
from offload_runtimes.protocol.tensor_specs import TensorHeader, TensorSpec, TensorSpecs

PROTOCOL = 4
MAX_PING_BYTES = 48 * 1024  # below what any bundle lets a message take
_LENGTH = struct.Struct("<I")
_ALIGNMENT = 16  # as numpy's own arrays: a bytes object's memory begins at a multiple, too
_SMALL_BYTES = 16 * 1024
_KEPT = 256  # layouts; those of one plan, unless shapes are dynamic
_MAX_RANK = 16
_VALUE = "value"  # the dtype that a layout names where the bytes are a `Value`
_DTYPES = {dtype.newbyteorder("<").str: dtype.newbyteorder("<") for dtype in DTYPES.values()}
_KINDS: Mapping[type[OffloadError], "pb.Failure.Kind"] = {
    ServerError: pb.Failure.SERVER,
    InputError: pb.Failure.INPUT,
    BundleError: pb.Failure.BUNDLE,
    DeadlineError: pb.Failure.DEADLINE,
}
_ERRORS = {kind: error for error, kind in _KINDS.items()}


class ProtocolError(ServerError):
    """The other end sent what the protocol does not allow; the session is over."""

    def __init__(self, sentence: str, *, retry: bool = False) -> None:
        super().__init__(sentence)
        self.retry = retry


def parse(data: bytes) -> tuple[pb.Message, memoryview]:
    """A message and the tensor's bytes behind it, which are not copied.

    Raises:
        ProtocolError: not a message, or an empty one.
    """
    message = pb.Message()
    try:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        message.ParseFromString(data[_LENGTH.size : end])
    except (struct.error, DecodeError) as error:
        raise ProtocolError("a message cannot be parsed: is the other end onnx-offload?") from error
    if message.WhichOneof("body") is None or end > len(data):
        raise ProtocolError("an empty message came: is the other end of the same version?")
    return message, memoryview(data)[end + -end % _ALIGNMENT :]


def check_none_lost(sent: int, received: int) -> None:
    """ProtocolError when the other end has sent another number of messages than have come.

    gRPC's own framing has no checksum: a flipped bit there can make a message vanish.
    """
    if sent != received:
        raise ProtocolError(f"{sent} messages were sent, {received} came: try again", retry=True)


def message(**body: Any) -> bytes:
    """A message without a tensor from its one field."""
    return _framed(pb.Message(**body))


def _framed(head: pb.Message, data: Buffer = b"") -> bytes:
    encoded = head.SerializeToString()
    padding = bytes(-(_LENGTH.size + len(encoded)) % _ALIGNMENT)
    return b"".join((_LENGTH.pack(len(encoded)), encoded, padding, data))


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor's bytes as they cross, by the codec named; raw ones are the array's own."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    data: memoryview


def pack(value: Any, codec_name: str) -> PackedTensor:
    """Encode the bytes of a value; an array of numbers that is as it crosses is not copied.

    Raises:
        ValueError: it is neither a tensor nor a sequence nor a map.
    """
    if structured.is_structured(value):
        data = structured.encode(value)
        shape: tuple[int, ...] = (len(data),)
        whole = codec(codec_name).encode(data, shape)
        return PackedTensor(_VALUE, shape, codec_name, memoryview(whole))
    array = value
    if array.dtype.str[0] == ">" or not array.flags.c_contiguous:
        array = array.astype(array.dtype.newbyteorder("<"), order="C")
    if codec_name == RAW.codec:
        return PackedTensor(array.dtype.str, array.shape, codec_name, array.data)
    encoded = codec(codec_name).encode(array.reshape(-1).view(np.uint8).data, array.shape)
    return PackedTensor(array.dtype.str, array.shape, codec_name, memoryview(encoded))


Happening: TypeAlias = "tuple[pb.Span.Kind, str, float, float]"


def tensor_message(
    frame: int,
    name: str,
    packed: PackedTensor,
    sent_s: float = 0.0,
    spans: Iterable[Happening] = (),
    plan: int = 0,
) -> bytes:
    """The message that carries a tensor; the one copy of its bytes.

    Args:
        frame: the frame's number.
        name: the tensor.
        packed: its bytes.
        sent_s: the sender's clock.
        spans: what happened to the frame: kind, name, start and end by the sender's clock.
        plan: which plan the frame follows.
    """
    head = pb.Message()
    tensor = head.tensor
    tensor.frame, tensor.plan, tensor.sent_s = frame, plan, sent_s
    tensor.layout = _layout(name, packed.dtype, packed.shape, packed.codec)
    tensor.checksum = _checksum(frame, plan, tensor.layout, packed.data)
    for kind, what, start_s, end_s in spans:
        tensor.spans.add(kind=kind, name=what, start_s=start_s, end_s=end_s)
    return _framed(head, packed.data)


def encode_tensor(
    frame: int,
    name: str,
    value: Any,
    codec_name: str,
    sent_s: float = 0.0,
    spans: Iterable[Happening] = (),
    plan: int = 0,
) -> bytes:
    """Pack a tensor and put it into a message."""
    return tensor_message(frame, name, pack(value, codec_name), sent_s, spans, plan)


def decode_tensor(
    tensor: pb.Tensor, data: memoryview, ports: TensorSpecs
) -> tuple[TensorHeader, Any]:
    """The layout and the value of a tensor message; errors as `read_layout` and `decode`."""
    layout = read_header(tensor, data, ports)
    return layout, decode(layout, data, ports)


def read_header(tensor: pb.Tensor, data: memoryview, ports: TensorSpecs) -> TensorHeader:
    """What a tensor message and the bytes behind it hold, before they are decoded.

    Raises:
        ProtocolError: damaged, not a tensor of the contract, or other dtype, shape, encoding or
            size.
    """
    if tensor.checksum != _checksum(tensor.frame, tensor.plan, tensor.layout, data):
        raise ProtocolError("a tensor was damaged on its way", retry=True)
    return ports.seen.get(tensor.layout) or _learn(tensor.layout, ports)


def decode(layout: TensorHeader, data: memoryview, ports: TensorSpecs) -> Any:
    """The value of a layout's bytes; an array of numbers is read-only and not a copy.

    Raises:
        ProtocolError: the bytes are not those of such a value.
    """
    port = ports[layout.name]
    try:
        whole = codec(layout.codec).decode(data, layout.size_bytes, layout.shape)
        if layout.dtype is None:
            assert port.value is not None  # or the layout had been refused
            return as_feed("a message", port.value, structured.decode(whole))
        array = np.ndarray(layout.shape, layout.dtype, whole)
    except (ValueError, OverflowError) as error:  # an InputError is a ValueError, too
        raise ProtocolError(f"tensor {layout.name!r} is damaged: {error}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


@functools.lru_cache(_KEPT)
def _layout(name: str, dtype: str, shape: tuple[int, ...], encoding: str) -> bytes:
    layout = pb.Layout(name=name, dtype=dtype, shape=shape, encoding=encoding)
    return layout.SerializeToString()


def _learn(data: bytes, ports: TensorSpecs) -> TensorHeader:
    """Check a layout against the contract, and keep it; so many are kept."""
    if len(ports.seen) >= _KEPT:
        ports.seen.clear()
    try:
        layout = ports.seen[data] = _checked(pb.Layout.FromString(data), ports)
    except DecodeError as error:
        raise ProtocolError("a layout cannot be parsed: is the other end onnx-offload?") from error
    return layout


def _checked(layout: pb.Layout, ports: TensorSpecs) -> TensorHeader:
    port = ports.get(layout.name)
    if port is None or port.value is None:
        raise ProtocolError(f"tensor {layout.name[:80]!r} is not one this bundle sends this way")
    shape = tuple(layout.shape)
    is_value = layout.dtype == _VALUE
    dtype = None if is_value else _DTYPES.get(layout.dtype)
    if not _is_agreed(port, is_value, dtype, shape):
        wanted = DTYPES.get(port.value.type, port.value.type)
        raise ProtocolError(
            f"tensor {layout.name!r} must be {wanted}{show_shape(port.value.shape)},"
            f" not {layout.dtype[:20]}{show_shape(shape[:_MAX_RANK])}"
        )
    size_bytes = math.prod(shape) * (1 if dtype is None else dtype.itemsize)
    if len(shape) > _MAX_RANK or size_bytes > port.limit_bytes:
        raise ProtocolError(
            f"tensor {layout.name!r} takes {size_bytes} bytes, allowed are {port.limit_bytes}"
        )
    if layout.encoding != port.encoding:
        raise ProtocolError(
            f"tensor {layout.name!r} came as {layout.encoding[:20]!r}, not as {port.encoding!r}"
        )
    return TensorHeader(layout.name, dtype, shape, port.encoding, size_bytes)


def _is_agreed(
    port: TensorSpec, is_value: bool, dtype: np.dtype[Any] | None, shape: tuple[int, ...]
) -> bool:
    """Whether a layout's dtype and shape are those of a port, as far as these are known."""
    assert port.value is not None
    declared = DTYPES.get(port.value.type)
    if is_value:
        return declared is None and len(shape) == 1
    if declared is None:
        return port.value.type == UNKNOWN and dtype is not None
    return dtype == declared.newbyteorder("<") and shape_fits(port.value.shape, shape)


def _checksum(frame: int, plan: int, layout: bytes, data: memoryview) -> int:
    """The sum that `offload.proto` defines; adding words is 10x faster than any CRC here."""
    head = zlib.crc32(b"%d|%d|%b" % (frame, plan, layout))
    if data.nbytes <= _SMALL_BYTES:
        return zlib.crc32(data, head)
    whole, rest = divmod(data.nbytes, 8)
    words = int(np.add.reduce(np.frombuffer(data, "<u8", whole)))
    if rest:
        words += int.from_bytes(np.frombuffer(data, np.uint8)[-rest:].tobytes(), "little")
    return (head + words) % 2**64


def encode_failure(error: OffloadError, frame: int = 0) -> bytes:
    """A failure message that says what an error says."""
    kind = next((kind for of, kind in _KINDS.items() if isinstance(error, of)), pb.Failure.SERVER)
    failure = pb.Failure(frame=frame, kind=kind, sentence=str(error)[:1000])
    return message(failure=failure)


def decode_failure(failure: pb.Failure, server: str) -> OffloadError:
    """The error that a failure message stands for."""
    return _ERRORS.get(failure.kind, ServerError)(f"server {server}: {failure.sentence}")
