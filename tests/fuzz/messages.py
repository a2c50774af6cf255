"""Random protocol messages, and contracts to check them: every codec, fixed and free shapes."""

from typing import Any

import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
from offload.bundle.bundle import ModelValue
from offload.planning.plan import Segment, Side
from offload_runtimes.engine import Array
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.codecs import NAMES
from offload_runtimes.protocol.server_state import SessionLimits
from offload_runtimes.protocol.tensor_specs import Contract, TensorSpec, TensorSpecs

from tests.fuzz.draw import Draw
from tests.runtimes.tensor_messages import encode_tensor

DIGEST = "d" * 64
LIMIT_BYTES = 4096
ROOM = SessionLimits(max_frames=4, max_bytes=3 * LIMIT_BYTES)
_TYPES = {
    "a": "tensor(float)",
    "b": "tensor(int64)",
    "c": "tensor(uint8)",
    "d": "tensor(bfloat16)",
    "e": "tensor(int4)",
    "f": "tensor(uint8)",
    "g": "tensor(string)",
    "m": "map(int64,tensor(float))",
    "q": "seq(tensor(float))",
    "u": "unknown",
}
_CODECS = {"a": "planes", "c": "png", "d": "zstd", "f": "jpeg", "m": "zstd"}
_SHAPES: dict[str, tuple[int | str, ...]] = {"b": (2, 3), "c": ("h", "w", 3), "f": ("h", 4, 3)}


def _spec(name: str) -> TensorSpec:
    shape = _SHAPES.get(name, ("n",)) if name in "abcdefg" else None
    return TensorSpec(ModelValue(name, _TYPES[name], shape), _CODECS.get(name, "raw"), LIMIT_BYTES)


def _segment(name: str, inputs: str, outputs: str) -> Segment:
    return Segment(name, Side.SERVER, (), (), tuple(inputs), tuple(outputs))


def _specs(names: str) -> TensorSpecs:
    return TensorSpecs({name: _spec(name) for name in names})


def two_contracts() -> tuple[Contract, Contract]:
    """Two plans of one bundle: a chain that forks and joins, and a short one."""
    long = (_segment("1", "a", "x"), _segment("2", "bc", "yd"), _segment("3", "xy", "aeu"))
    short = (_segment("4", "abcgm", "a"), _segment("5", "", "g"))
    return (
        Contract(DIGEST, long, _specs("abcdefqu"), _specs("deu"), {"2": ("f", "q")}),
        Contract(DIGEST, short, _specs("abcgm"), _specs("ag")),
    )


def outputs(segment: Segment, draw: Draw) -> dict[str, Any]:
    """Outputs that a segment may have computed."""
    values: dict[str, Any] = {}
    for name in segment.outputs:
        if name in "gu":
            values[name] = _structure(draw) if draw.byte() < 240 else None
            continue
        dtype = {"d": np.uint16, "e": np.int8}.get(name, np.float32)
        values[name] = np.zeros(draw.number() % (2 * LIMIT_BYTES), dtype)
    return values


def tensor(draw: Draw) -> bytes:
    """A valid or nearly valid tensor message; a right checksum lets it reach more code."""
    name = draw.one_of("abcdefgmqux") if draw.byte() < 250 else draw.blob().decode("latin-1")
    known = _spec(name) if name in _TYPES else None
    dtype = draw.one_of(("<f4", "<i8", "|u1", "<u2", "|i1", "|b1", ">f4", "O", "", "value"))
    shape = tuple(draw.number() for _ in range(draw.byte() % 4))
    codec = draw.one_of(NAMES) if draw.byte() < 250 else draw.blob().decode("latin-1")
    if known is not None and draw.byte() < 200:
        dtype, codec = _DTYPES.get(name, "value"), known.codec
    if draw.byte() < 128 and codec in NAMES and 0 < np.prod(shape, dtype=object) < LIMIT_BYTES:
        return _valid(name, dtype, shape, codec, draw)
    packed = wire.PackedTensor(dtype, shape, codec, memoryview(draw.blob()))
    return wire.tensor_message(draw.number(), name, packed, plan=draw.number() % 2**32)


_DTYPES = {"a": "<f4", "b": "<i8", "c": "|u1", "d": "<u2", "e": "|i1", "f": "|u1"}


def _valid(name: str, dtype: str, shape: tuple[int, ...], codec: str, draw: Draw) -> bytes:
    """A tensor as a correct device encodes it, with another codec where it does not suit."""
    if dtype == "value" and codec not in ("png", "jpeg", "jpeg95"):
        value = _structure(draw)
        return encode_tensor(draw.number(), name, value, codec, plan=draw.byte() % 3)
    array: Array = np.zeros(shape, _DTYPES.get(name, "<f4"))
    if codec in ("png", "jpeg", "jpeg95") and (dtype != "|u1" or len(shape) < 3 or shape[-1] != 3):
        codec = "raw"
    array.reshape(-1)[:1] = draw.byte() % 2
    return encode_tensor(draw.number(), name, array, codec, plan=draw.byte() % 3)


def _structure(draw: Draw, depth: int = 0) -> Any:
    """Text, a map, an array of numbers, or a sequence of these."""
    match draw.byte() % (4 if depth < 2 else 3):
        case 0:
            return np.array([draw.blob().decode("latin-1")] * (draw.byte() % 4), object)
        case 1:
            return {key: draw.byte() / 2 for key in range(draw.byte() % 4)}
        case 2:
            return np.zeros(draw.byte() % 4, draw.one_of(("<f4", "<i8")))
        case _:
            return [_structure(draw, depth + 1) for _ in range(draw.byte() % 3)]


def message(draw: Draw, count: int = 0) -> bytes:
    """Any message of the protocol, valid or nearly; the `count`-th that the receiver gets."""
    match draw.byte() % 11:
        case 0:
            protocol = wire.PROTOCOL if draw.byte() < 240 else draw.number() % 2**32
            bundle = DIGEST if draw.byte() < 240 else draw.blob().decode("latin-1")
            return wire.message(hello=pb.Hello(protocol=protocol, bundle=bundle))
        case 1:
            welcome = pb.Welcome(protocol=wire.PROTOCOL, max_frames=draw.number() % 2**32)
            return wire.message(welcome=welcome)
        case 2:
            sent, data = _sent(draw, count), draw.blob() * draw.byte()
            return wire.message(ping=pb.Ping(number=draw.number(), data=data, sent=sent))
        case 3:
            sent, server_s = _sent(draw, count), float(draw.number())
            return wire.message(pong=pb.Pong(number=draw.number(), server_s=server_s, sent=sent))
        case 4:
            return wire.message(cancel=pb.Cancel(frame=draw.number()))
        case 5:
            sentence = draw.blob().decode("latin-1")
            kind = draw.one_of((pb.Failure.SERVER, pb.Failure.INPUT, pb.Failure.BUNDLE))
            failure = pb.Failure(frame=draw.number(), kind=kind, sentence=sentence)
            return wire.message(failure=failure)
        case 6:
            return wire.message(goodbye=pb.Goodbye())
        case 7:
            names = [draw.one_of("fqx") for _ in range(draw.byte() % 3)]
            begin = pb.Begin(frame=draw.number(), plan=draw.byte() % 3, defaults=names)
            return wire.message(begin=begin)
        case _:
            return tensor(draw)


def _sent(draw: Draw, count: int) -> int:
    """A count of messages, mostly the right one: a wrong one ends the session."""
    return count if draw.byte() < 240 else draw.number()


def damaged(data: bytes, draw: Draw) -> bytes:
    """The message with one place cut off, doubled or overwritten."""
    at = draw.number() % (len(data) + 1)
    match draw.byte() % 3:
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at:] * 2
        case _:
            blob = draw.blob()
            return data[:at] + blob + data[at + len(blob) :]
