"""Encode and decode messages; everything that arrives is checked against a contract.

The format is `offload.proto`. Tensors are raw little-endian bytes in C order, or those bytes
encoded by a codec; text, sequences and maps are encoded by `structured_values`. Nothing is ever
unpickled or executed.
"""

import functools
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from offload.costs.encodings import RAW
from offload.errors import BundleError, DeadlineError, InputError, OffloadError, ServerError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.engine import DTYPES, UNKNOWN, as_feed, shape_fits, show_shape
from offload_runtimes.protocol import framing
from offload_runtimes.protocol import structured_values as structured
from offload_runtimes.protocol.codecs import codec
from offload_runtimes.protocol.tensor_specs import TensorHeader, TensorSpecs

PROTOCOL = 5
MAX_PING_BYTES = 48 * 1024  # below the message limit of any bundle
_SMALL_BYTES = 16 * 1024
_HEADERS = 256  # that are remembered; enough for one plan unless shapes are dynamic
_MAX_RANK = 16
_VALUE = "value"  # the dtype in a layout if the bytes are a protobuf `Value`
_DTYPES = {dtype.newbyteorder("<").str: dtype.newbyteorder("<") for dtype in DTYPES.values()}
_KINDS: Mapping[type[OffloadError], "pb.Failure.Kind"] = {
    ServerError: pb.Failure.SERVER,
    InputError: pb.Failure.INPUT,
    BundleError: pb.Failure.BUNDLE,
    DeadlineError: pb.Failure.DEADLINE,
}
_ERRORS = {kind: error for error, kind in _KINDS.items()}


class ProtocolError(ServerError):
    """The other end violated the protocol; the session is over."""

    def __init__(self, sentence: str, *, retry: bool = False) -> None:
        super().__init__(sentence)
        self.retry = retry


class OldPeerError(ProtocolError):
    """The other end speaks protocol 4 or older, which no later version can read."""


def parse(data: bytes) -> tuple[pb.Message, memoryview]:
    """Parse a message; also returns the tensor's bytes in it, which are not copied.

    Raises:
        OldPeerError: it is a message of protocol 4 or older.
        ProtocolError: it is not a message, or an empty one.
    """
    try:
        message, tensor = framing.split(data)
    except DecodeError as error:
        _refuse_old(data)
        raise ProtocolError("a message cannot be parsed: is the other end onnx-offload?") from error
    if message.WhichOneof("body") is None:
        _refuse_old(data)
        raise ProtocolError("an empty message came: is the other end of the same version?")
    return message, tensor


def _refuse_old(data: bytes) -> None:
    if framing.is_old(data):
        raise OldPeerError(
            f"the other end speaks protocol 4 or older, this one speaks {PROTOCOL}: install the"
            " same version of onnx-offload on both"
        )


def check_none_lost(sent: int, received: int) -> None:
    """Raise ProtocolError if the other end has sent more or fewer messages than have come.

    gRPC's own framing has no checksum: a flipped bit there can make a message vanish.
    """
    if sent != received:
        raise ProtocolError(f"{sent} messages were sent, {received} came: try again", retry=True)


def message(**body: Any) -> bytes:
    """Encode a message without a tensor from its one field."""
    return pb.Message(**body).SerializeToString()


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor's encoded bytes; with the codec `raw`, the array's own memory."""

    dtype: str
    shape: tuple[int, ...]
    codec: str
    data: memoryview


def pack(value: Any, codec_name: str) -> PackedTensor:
    """Encode a value; a contiguous little-endian array that is sent raw is not copied.

    Raises:
        ValueError: it is neither a tensor nor a sequence nor a map.
    """
    if structured.is_structured(value):
        data = structured.encode(value)
        shape: tuple[int, ...] = (len(data),)
        encoded = codec(codec_name).encode(data, shape)
        return PackedTensor(_VALUE, shape, codec_name, memoryview(encoded))
    array = value
    dtype = array.dtype.str
    if dtype[0] == ">" or not array.flags.c_contiguous:
        array = array.astype(array.dtype.newbyteorder("<"), order="C")
        dtype = array.dtype.str
    if codec_name == RAW.codec:
        return PackedTensor(dtype, array.shape, codec_name, array.data)
    encoded = codec(codec_name).encode(array.reshape(-1).view(np.uint8).data, array.shape)
    return PackedTensor(dtype, array.shape, codec_name, memoryview(encoded))


def tensor_message(
    frame: int,
    name: str,
    packed: PackedTensor,
    sent_s: float = 0.0,
    spans: Iterable[pb.Span] = (),
    plan: int = 0,
) -> bytes:
    """Encode a message with a tensor; this is the only copy of the tensor's bytes.

    Args:
        frame: the frame's number.
        name: the tensor.
        packed: its encoded bytes.
        sent_s: time by the sender's clock.
        spans: the frame's timeline, by the sender's clock.
        plan: index of the plan that the frame follows.
    """
    head = pb.Message()
    tensor = head.tensor
    tensor.frame, tensor.plan, tensor.sent_s = frame, plan, sent_s
    tensor.layout = _layout(name, packed.dtype, packed.shape, packed.codec)
    tensor.checksum = _checksum(frame, plan, tensor.layout, packed.data)
    tensor.spans.extend(spans)
    return framing.join(head, packed.data)


def decode_tensor(
    tensor: pb.Tensor, data: memoryview, specs: TensorSpecs
) -> tuple[TensorHeader, Any]:
    """The header and the value of a tensor message; errors as `read_header` and `decode`."""
    header = read_header(tensor, data, specs)
    return header, decode(header, data, specs)


def read_header(tensor: pb.Tensor, data: memoryview, specs: TensorSpecs) -> TensorHeader:
    """Check a tensor message against the contract before its bytes are decoded.

    Raises:
        ProtocolError: it is damaged, not a tensor of the contract, or has another dtype, shape,
            encoding or size.
    """
    if tensor.checksum != _checksum(tensor.frame, tensor.plan, tensor.layout, data):
        raise ProtocolError("a tensor was damaged on its way", retry=True)
    if header := specs.headers.get(tensor.layout):
        return header
    if len(specs.headers) >= _HEADERS:
        specs.headers.clear()
    try:
        layout = pb.Layout.FromString(tensor.layout)
    except DecodeError as error:
        raise ProtocolError("a layout cannot be parsed: is the other end onnx-offload?") from error
    header = specs.headers[tensor.layout] = _checked(layout, specs)
    return header


def decode(header: TensorHeader, data: memoryview, specs: TensorSpecs) -> Any:
    """Decode a tensor; an array of numbers is read-only, and a view where it is aligned.

    Raises:
        ProtocolError: the bytes are not those of such a value.
    """
    spec = specs[header.name]
    try:
        decoded = codec(header.codec).decode(data, header.size_bytes, header.shape)
        if header.dtype is None:
            assert spec.value is not None  # or the header had been refused
            return as_feed("a message", spec.value, structured.decode(decoded))
        array = np.ndarray(header.shape, header.dtype, decoded)
        if not array.flags.aligned:  # only another serializer than ours leaves it so
            array = array.copy()
    except (ValueError, OverflowError) as error:  # an InputError is a ValueError, too
        raise ProtocolError(f"tensor {header.name!r} is damaged: {error}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


@functools.lru_cache(_HEADERS)
def _layout(name: str, dtype: str, shape: tuple[int, ...], encoding: str) -> bytes:
    layout = pb.Layout(name=name, dtype=dtype, shape=shape, encoding=encoding)
    return layout.SerializeToString()


def _checked(layout: pb.Layout, specs: TensorSpecs) -> TensorHeader:
    """Check name, dtype, shape, size and encoding against the contract."""
    spec = specs.get(layout.name)
    if spec is None or spec.value is None:
        raise ProtocolError(f"tensor {layout.name[:80]!r} is not one this bundle sends this way")
    shape = tuple(layout.shape)
    declared = DTYPES.get(spec.value.type)
    is_structured = layout.dtype == _VALUE
    dtype = None if is_structured else _DTYPES.get(layout.dtype)
    if is_structured:
        is_allowed = declared is None and len(shape) == 1
    elif declared is None:
        is_allowed = spec.value.type == UNKNOWN and dtype is not None
    else:
        is_same = dtype is not None and dtype == declared.newbyteorder("<")  # None == float64
        is_allowed = is_same and shape_fits(spec.value.shape, shape)
    if not is_allowed:
        raise ProtocolError(
            f"tensor {layout.name!r} must be"
            f" {spec.value.type if declared is None else declared}{show_shape(spec.value.shape)},"
            f" not {layout.dtype[:20]}{show_shape(shape[:_MAX_RANK])}"
        )
    size_bytes = math.prod(shape) * (1 if dtype is None else dtype.itemsize)
    if len(shape) > _MAX_RANK or size_bytes > spec.limit_bytes:
        raise ProtocolError(
            f"tensor {layout.name!r} takes {size_bytes} bytes, allowed are {spec.limit_bytes}"
        )
    if layout.encoding != spec.codec:
        raise ProtocolError(
            f"tensor {layout.name!r} came as {layout.encoding[:20]!r}, not as {spec.codec!r}"
        )
    return TensorHeader(layout.name, dtype, shape, spec.codec, size_bytes)


def _checksum(frame: int, plan: int, layout: bytes, data: memoryview) -> int:
    """The checksum of `offload.proto`; adding words is 10x faster than any CRC here."""
    head = zlib.crc32(b"%d|%d|%b" % (frame, plan, layout))
    if data.nbytes <= _SMALL_BYTES:
        return zlib.crc32(data, head)
    count, tail = divmod(data.nbytes, 8)
    words = int(np.add.reduce(np.frombuffer(data, "<u8", count)))
    if tail:
        words += int.from_bytes(np.frombuffer(data, np.uint8)[-tail:].tobytes(), "little")
    return (head + words) % 2**64


def encode_failure(error: OffloadError, frame: int = 0) -> bytes:
    """Encode an error as a failure message."""
    kind = next((kind for of, kind in _KINDS.items() if isinstance(error, of)), pb.Failure.SERVER)
    failure = pb.Failure(frame=frame, kind=kind, sentence=str(error)[:1000])
    encoded = message(failure=failure)
    return framing.as_old(encoded) if isinstance(error, OldPeerError) else encoded


def decode_failure(failure: pb.Failure, server: str) -> OffloadError:
    """The error of a failure message."""
    return _ERRORS.get(failure.kind, ServerError)(f"server {server}: {failure.sentence}")
