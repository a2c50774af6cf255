"""The registry of codecs on the wire: bytes to fewer bytes and back.

They lose nothing, but for `jpeg`, which is for pictures. Encodings that lose precision of any
tensor (float16, uint8) are nodes inside the subgraphs, not codecs.
"""

import io
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard
from offload.errors import InputError

Shape = tuple[int, ...]
Buffer: TypeAlias = bytes | memoryview
JPEG_QUALITY = 90
_WIDTHS = (2, 4, 8)  # bytes of what has planes
_ALL, _MASKED = b"\0", b"\1"
_FEW_ZEROS = 1 / 16  # a mask of less would take what it saves
_MOST_SIDE, _MOST_PIXELS = 1 << 16, 1 << 26  # of JPEG; of what Pillow opens without a warning


@dataclass(frozen=True, slots=True)
class Codec:
    """One encoding.

    Attributes:
        name: what plans and messages call it.
        encode: bytes, and the shape of their array, to encoded bytes.
        decode: encoded bytes, the exact size they must decode to and the shape of their array, to
            bytes; ValueError when they don't.
    """

    name: str
    encode: Callable[[Buffer, Shape], Buffer]
    decode: Callable[[Buffer, int, Shape], Buffer]


class _Zstd(threading.local):
    """Level 1 (design: 1.1x smaller for dense, 1.8x after ReLU); contexts are not thread-safe."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def _raw_decode(data: Buffer, size_bytes: int, _: Shape = ()) -> Buffer:
    if len(data) != size_bytes:
        raise ValueError(f"{len(data)} bytes came, {size_bytes} were expected")
    return data


def _zstd_decode(data: Buffer, size_bytes: int, _: Shape = ()) -> bytes:
    if _zstd_size(data) != size_bytes:
        raise ValueError(f"the frame does not declare {size_bytes} bytes")
    try:
        return _zstd.decompressor.decompress(data, size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _zstd_size(frame: Buffer) -> int:
    """What a frame says that it decodes to."""
    try:
        return int(zstandard.frame_content_size(frame))
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _words(size_bytes: int, shape: Shape) -> int:
    """Bytes of each element of an array; 0 where it is empty."""
    count = math.prod(shape)
    return size_bytes // count if count else 0


def _planes_encode(data: Buffer, shape: Shape) -> bytes:
    """Zeros as one bit each where there are many, the rest byte by byte of significance.

    Floats differ in their low bytes and agree in their high ones: apart, the latter compress
    (the idea of Blosc's shuffle). One byte says whether a mask of what is not zero precedes.
    """
    width = _words(len(data), shape)
    if width not in _WIDTHS:
        return _ALL + _zstd.compressor.compress(data)
    words = np.frombuffer(data, f"<u{width}")
    mask = words != 0
    kept = np.count_nonzero(mask)
    if len(words) - kept < _FEW_ZEROS * len(words):
        return _ALL + _blocks(_turned(words, width))
    return _MASKED + _blocks([np.packbits(mask).tobytes(), *_turned(words[mask], width)])


def _turned(words: npt.NDArray[Any], width: int) -> list[bytes]:
    return [plane.tobytes() for plane in words.view(np.uint8).reshape(-1, width).T]


def _blocks(parts: Sequence[bytes]) -> bytes:
    """One frame, each part with a table of symbols of its own: parts are unlike each other."""
    writer = _zstd.compressor.compressobj(size=sum(map(len, parts)))
    found: list[bytes] = []
    for part in parts:
        found += (writer.compress(part), writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return b"".join((*found, writer.flush()))


def _turned_back(data: Buffer, width: int) -> npt.NDArray[Any]:
    planes = np.frombuffer(data, np.uint8).reshape(width, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")


def _planes_decode(data: Buffer, size_bytes: int, shape: Shape) -> bytes:
    flag, frame = data[:1], memoryview(data)[1:]
    width = _words(size_bytes, shape)
    if flag == _ALL:
        planes = _zstd_decode(frame, size_bytes)
        return planes if width not in _WIDTHS else _turned_back(planes, width).tobytes()
    if flag != _MASKED or width not in _WIDTHS:
        raise ValueError("these bytes do not begin as planes do")
    count = size_bytes // width
    mask_bytes = -(-count // 8)
    declared = _zstd_size(frame)
    if not mask_bytes <= declared <= mask_bytes + size_bytes:
        raise ValueError(f"the frame declares {declared} bytes for {size_bytes}")
    rest = memoryview(_zstd_decode(frame, declared))
    mask = np.unpackbits(np.frombuffer(rest, np.uint8, mask_bytes), count=count).view(bool)
    if np.count_nonzero(mask) * width != declared - mask_bytes:
        raise ValueError("the mask and the planes do not fit")
    words = np.zeros(count, f"<u{width}")
    words[mask] = _turned_back(rest[mask_bytes:], width)
    return words.tobytes()


def suits(name: str, dtype: str, shape: Shape) -> bool:
    """Whether a codec is for arrays like this."""
    if name in ("png", "jpeg"):
        return suits_picture(dtype, shape)
    return name != "planes" or dtype not in ("uint8", "int8", "bool")


def suits_picture(dtype: str, shape: Shape) -> bool:
    """Whether an array is one picture or several: uint8 ... x H x W x 3, none of them empty."""
    if dtype != "uint8" or len(shape) < 3 or shape[-1] != 3 or 0 in shape:
        return False
    rows = math.prod(shape[:-2])
    return max(rows, shape[-2]) < _MOST_SIDE and rows * shape[-2] < _MOST_PIXELS


def has_pictures() -> bool:
    """Whether this machine can encode and decode pictures: whether Pillow is installed."""
    return find_spec("PIL") is not None


def _drawn(kind: str, data: Buffer, shape: Shape) -> bytes:
    """Pictures below each other as one picture file."""
    from PIL import Image

    stack = np.frombuffer(data, np.uint8).reshape(-1, *shape[-2:])
    file = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if kind == "jpeg" else {"compress_level": 3}
    Image.fromarray(stack).save(file, kind, **options)
    return file.getvalue()


def _seen(kind: str, data: Buffer, size_bytes: int, shape: Shape) -> bytes:
    from PIL import Image

    width = shape[-2] if len(shape) > 2 else 0
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as opened:
            # Looked at before anything is decoded: a small file may claim to be huge.
            if opened.mode != "RGB" or opened.width != width:
                raise ValueError(f"the picture is {opened.mode}, {opened.width} wide")
            if opened.width * opened.height * 3 != size_bytes:
                raise ValueError(f"the picture has {opened.height} rows")
            return opened.tobytes()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no {kind} that can be read ({error})") from error


_CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw", lambda data, _: data, _raw_decode),
        Codec("zstd", lambda data, _: _zstd.compressor.compress(data), _zstd_decode),
        Codec("planes", _planes_encode, _planes_decode),
        *(Codec(kind, partial(_drawn, kind), partial(_seen, kind)) for kind in ("png", "jpeg")),
    )
}
NAMES = tuple(_CODECS)


_REFERENCE_BYTES = 1 << 20
_REFERENCE_RUNS = 5


def reference_s() -> float:
    """Seconds this machine needs to compress and restore 1 MiB like activations: a profile's
    yardstick for encoding, by which seconds measured on one machine are carried to another."""
    random = np.random.default_rng(0)
    values = np.maximum(random.standard_normal(_REFERENCE_BYTES // 4, np.float32), 0)
    data, found = values.tobytes(), []
    for _ in range(_REFERENCE_RUNS):
        start_s = time.thread_time()
        _zstd_decode(_zstd.compressor.compress(data), len(data))
        found.append(time.thread_time() - start_s)
    return min(found)


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        InputError: there is none.
    """
    try:
        return _CODECS[name]
    except KeyError:
        known = ", ".join(NAMES)
        raise InputError(f"encoding {name!r} is unknown: this version has {known}") from None
