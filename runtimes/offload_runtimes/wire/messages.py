"""Messages to bytes and back; everything that comes in is checked against a contract.

The format is `offload.proto`. Tensors are raw little-endian bytes in C order or what a codec
makes of them; nothing is ever unpickled or executed.
"""

import functools
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError

import offload_runtimes.wire.offload_pb2 as pb
from offload_runtimes.engine import Array, dtype_of, shape_fits, show_shape
from offload_runtimes.wire.codecs import Buffer, codec
from offload_runtimes.wire.contract import Layout, Ports

PROTOCOL = 2
MAX_PING_BYTES = 48 * 1024  # below what any bundle lets a message take
_LENGTH = struct.Struct("<I")
_ALIGNMENT = 16  # as numpy's own arrays: a bytes object's memory begins at a multiple, too
_SMALL_BYTES = 16 * 1024
_KEPT = 256  # layouts; those of one plan, unless shapes are dynamic
_MAX_RANK = 16
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


def message(data: Buffer = b"", **body: Any) -> bytes:
    """A message from its one field, and the bytes of the tensor if it has one."""
    head = pb.Message(**body).SerializeToString()
    padding = bytes(-(_LENGTH.size + len(head)) % _ALIGNMENT)
    return b"".join((_LENGTH.pack(len(head)), head, padding, data))


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor's bytes as they cross, by the codec named; raw ones are those of the array."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    data: Buffer


def pack(array: Array, codec_name: str) -> Packed:
    """Encode a tensor's bytes; an array that is as it crosses is not copied."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = codec(codec_name).encode(little.reshape(-1).view(np.uint8).data, array.shape)
    return Packed(array.dtype.name, array.shape, codec_name, data)


def tensor_message(
    frame: int,
    name: str,
    packed: Packed,
    sent_s: float = 0.0,
    spans: Iterable[pb.Span] = (),
    plan: int = 0,
) -> bytes:
    """The message that carries a tensor; the one copy of its bytes."""
    layout = _layout(name, packed.dtype, packed.shape, packed.codec)
    checksum = _checksum(frame, plan, layout, packed.data)
    tensor = pb.Tensor(
        frame=frame, layout=layout, plan=plan, sent_s=sent_s, spans=spans, checksum=checksum
    )
    return message(packed.data, tensor=tensor)


def encode_tensor(
    frame: int,
    name: str,
    array: Array,
    codec_name: str,
    sent_s: float = 0.0,
    spans: Iterable[pb.Span] = (),
    plan: int = 0,
) -> bytes:
    """Pack a tensor and put it into a message."""
    return tensor_message(frame, name, pack(array, codec_name), sent_s, spans, plan)


def decode_tensor(tensor: pb.Tensor, data: memoryview, ports: Ports) -> tuple[Layout, Array]:
    """The array of a tensor message and the bytes behind it, without a copy and read-only.

    Raises:
        ProtocolError: not a tensor of the contract, or other dtype, shape, encoding or size.
    """
    if tensor.checksum != _checksum(tensor.frame, tensor.plan, tensor.layout, data):
        raise ProtocolError("a tensor was damaged on its way", retry=True)
    layout = ports.seen.get(tensor.layout) or _learn(tensor.layout, ports)
    try:
        whole = codec(layout.codec).decode(data, layout.size_bytes, layout.shape)
    except ValueError as error:
        raise ProtocolError(f"tensor {layout.name!r} is damaged: {error}") from error
    array: Array = np.ndarray(layout.shape, layout.dtype, whole)
    return layout, array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


@functools.lru_cache(_KEPT)
def _layout(name: str, dtype: str, shape: tuple[int, ...], encoding: str) -> bytes:
    layout = pb.Layout(name=name, dtype=dtype, shape=shape, encoding=encoding)
    return layout.SerializeToString()


def _learn(data: bytes, ports: Ports) -> Layout:
    """Check a layout against the contract, and keep it; so many are kept."""
    if len(ports.seen) >= _KEPT:
        ports.seen.clear()
    try:
        layout = ports.seen[data] = _checked(pb.Layout.FromString(data), ports)
    except DecodeError as error:
        raise ProtocolError("a layout cannot be parsed: is the other end onnx-offload?") from error
    return layout


def _checked(layout: pb.Layout, ports: Ports) -> Layout:
    port = ports.get(layout.name)
    if port is None or port.value is None:
        raise ProtocolError(f"tensor {layout.name[:80]!r} is not one this bundle sends this way")
    dtype, shape = dtype_of(port.value.type), tuple(layout.shape)
    if layout.dtype != dtype.name or not shape_fits(port.value.shape, shape):
        raise ProtocolError(
            f"tensor {layout.name!r} must be {dtype}{show_shape(port.value.shape)},"
            f" not {layout.dtype[:20]}{show_shape(shape[:_MAX_RANK])}"
        )
    size_bytes = math.prod(shape) * dtype.itemsize
    if len(shape) > _MAX_RANK or size_bytes > port.limit_bytes:
        raise ProtocolError(
            f"tensor {layout.name!r} takes {size_bytes} bytes, allowed are {port.limit_bytes}"
        )
    if layout.encoding != port.encoding:
        raise ProtocolError(
            f"tensor {layout.name!r} came as {layout.encoding[:20]!r}, not as {port.encoding!r}"
        )
    return Layout(layout.name, dtype.newbyteorder("<"), shape, port.encoding, size_bytes)


def _checksum(frame: int, plan: int, layout: bytes, data: Buffer) -> int:
    """The sum that `offload.proto` defines; adding words is 10x faster than any CRC here."""
    head = zlib.crc32(b"%d|%d|%b" % (frame, plan, layout))
    if len(data) <= _SMALL_BYTES:
        return zlib.crc32(data, head)
    whole = len(data) // 8 * 8
    words = int(np.add.reduce(np.frombuffer(data, "<u8", whole // 8)))
    return (head + words + int.from_bytes(data[whole:], "little")) % 2**64


def encode_failure(error: OffloadError, frame: int = 0) -> bytes:
    """A failure message that says what an error says."""
    kind = next((kind for of, kind in _KINDS.items() if isinstance(error, of)), pb.Failure.SERVER)
    failure = pb.Failure(frame=frame, kind=kind, sentence=str(error)[:1000])
    return message(failure=failure)


def decode_failure(failure: pb.Failure, server: str) -> OffloadError:
    """The error that a failure message stands for."""
    return _ERRORS.get(failure.kind, ServerError)(f"server {server}: {failure.sentence}")
