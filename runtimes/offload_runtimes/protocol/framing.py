"""The bytes of a `Message` of `offload.proto`: written with one copy of a tensor, read with none.

Generated code would copy a tensor twice on each side. So `pad` and `data` are appended to a
serialized message here, and found again by their tags. Any protobuf library reads the result, and
what such a library writes is read here: fields may come in any order.
"""

from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

import offload_runtimes.protocol.offload_pb2 as pb
from offload_runtimes.protocol.codecs import Buffer

_ALIGNMENT = 16  # of numpy's own arrays, and of the memory of a bytes object
WIRE_BYTES: Final = 2  # protobuf's wire type of bytes, text and messages: a length, then the bytes
_DATA_TAG: Final = pb.Message.DATA_FIELD_NUMBER << 3 | WIRE_BYTES
_PAD_TAG: Final = pb.Message.PAD_FIELD_NUMBER << 3 | WIRE_BYTES
_PADS = tuple(bytes((_PAD_TAG, size)) + bytes(size) for size in range(_ALIGNMENT))
CONTINUED: Final = 128  # a byte of a varint from here on is followed by another one
TAG_MASK: Final = 7 | CONTINUED
_VARINT_BYTES = 10  # the longest
_OLD_LENGTH_BYTES = 4


def join(head: pb.Message, data: Buffer) -> bytes:
    """The bytes of a message with a tensor, whose bytes begin at a multiple of 16.

    This is the only copy of the tensor's bytes.
    """
    encoded = head.SerializeToString()
    tag = field_head(pb.Message.DATA_FIELD_NUMBER, memoryview(data).nbytes)
    pad = _PADS[-(len(encoded) + len(_PADS[0]) + len(tag)) % _ALIGNMENT]
    return b"".join((encoded, pad, tag, data))


def split(data: bytes) -> tuple[pb.Message, memoryview]:
    """A message without its tensor, and the tensor's bytes.

    The bytes are not copied if `data` is the last field, as every usual serializer writes it.

    Raises:
        DecodeError: it is not a protobuf message.
    """
    at, end = 0, len(data)
    while at + 1 < end:
        tag, size, begin = data[at], data[at + 1], at + 2
        if tag & TAG_MASK != WIRE_BYTES:
            break
        if size >= CONTINUED:
            size, begin = field_length(data, at + 1)
        if tag == _DATA_TAG:
            if begin + size != end:
                break
            return pb.Message.FromString(data[:at]), memoryview(data)[begin:]
        at = begin + size
    message = pb.Message.FromString(data)
    tensor = memoryview(message.data)
    message.ClearField("data")
    return message, tensor


def field_length(data: bytes, at: int) -> tuple[int, int]:
    """Read a length, which is a varint, at an index; returns it and the index after it.

    Raises:
        DecodeError: it does not end within ten bytes, or with the data.
    """
    size = 0
    for shift, byte in enumerate(data[at : at + _VARINT_BYTES]):
        size |= (byte % CONTINUED) << 7 * shift
        if byte < CONTINUED:
            return size, at + shift + 1
    raise DecodeError("a field's length does not end")


@lru_cache(256)  # most tensors of a session have one of a few sizes
def field_head(number: int, size_bytes: int) -> bytes:
    """What protobuf writes before the bytes of a field with a number up to 15."""
    parts = bytearray((number << 3 | WIRE_BYTES,))
    while size_bytes >= CONTINUED:
        parts.append(size_bytes % CONTINUED | CONTINUED)
        size_bytes >>= 7
    parts.append(size_bytes)
    return bytes(parts)


def is_old(data: bytes) -> bool:
    """Whether this is a message without a tensor in the framing of protocols 1 to 4.

    They put the message's length before it and zeros after it, up to a multiple of 16 bytes.
    """
    end = _OLD_LENGTH_BYTES + int.from_bytes(data[:_OLD_LENGTH_BYTES], "little")
    if len(data) != end + -end % _ALIGNMENT:
        return False
    try:
        message = pb.Message.FromString(data[_OLD_LENGTH_BYTES:end])
    except DecodeError:
        return False
    return message.WhichOneof("body") is not None


def as_old(message: bytes) -> bytes:
    """A message in the framing of protocols 1 to 4, for an end that cannot read another one."""
    framed = len(message).to_bytes(_OLD_LENGTH_BYTES, "little") + message
    return framed + bytes(-len(framed) % _ALIGNMENT)
