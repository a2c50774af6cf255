"""Codecs that compress the bytes of tensors for sending: raw, zstd, planes, png, jpeg, jpeg95.

They are lossless, except for `jpeg` and `jpeg95`, which are for pictures. Encodings that reduce the
precision of any tensor (float16, uint8) are nodes inside the subgraphs, not codecs.
"""

import io
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
# By codec, the format of the picture file and Pillow's options.
_PICTURES: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "png": ("png", {"compress_level": 3}),
    "jpeg": ("jpeg", {"quality": 90}),
    "jpeg95": ("jpeg", {"quality": 95}),
}
_WIDTHS = (2, 4, 8)  # bytes of the elements that `planes` splits
_ALL, _MASKED = b"\0", b"\1"
_FEW_ZEROS = 1 / 16  # with a smaller share, the mask costs as much as it saves
_MOST_SIDE, _MOST_PIXELS = 1 << 16, 1 << 26  # of JPEG; of what Pillow opens without a warning


@dataclass(frozen=True, slots=True)
class Codec:
    """One encoding.

    Attributes:
        name: its name in plans and messages.
        encode: takes bytes and the shape of their array, returns encoded bytes.
        decode: takes encoded bytes, the exact size and the shape of the decoded array, returns
            the decoded bytes; ValueError if they have another size.
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
    """Decoded size that a zstd frame declares."""
    try:
        return int(zstandard.frame_content_size(frame))
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _words(size_bytes: int, shape: Shape) -> int:
    """Bytes of each element of an array; 0 if it is empty."""
    count = math.prod(shape)
    return size_bytes // count if count else 0


def _planes_encode(data: Buffer, shape: Shape) -> bytes:
    """Group bytes by significance before zstd; zeros, if there are many, become one bit each.

    The high bytes of floats are similar, the low ones are not: grouped, the former compress well
    (Blosc's shuffle). The first byte says whether a mask of the nonzero elements follows.
    """
    width = _words(len(data), shape)
    if width not in _WIDTHS:
        return _ALL + _zstd.compressor.compress(data)
    words = np.frombuffer(data, f"<u{width}")
    mask = words != 0
    if len(words) - np.count_nonzero(mask) < _FEW_ZEROS * len(words):
        return _ALL + _blocks(_to_planes(words, width))
    return _MASKED + _blocks([np.packbits(mask).tobytes(), *_to_planes(words[mask], width)])


def _to_planes(words: npt.NDArray[Any], width: int) -> list[bytes]:
    return [plane.tobytes() for plane in words.view(np.uint8).reshape(-1, width).T]


def _blocks(parts: Sequence[bytes]) -> bytes:
    """Compress parts into one frame, each with its own symbol table, as the parts differ."""
    writer = _zstd.compressor.compressobj(size=sum(map(len, parts)))
    blocks: list[bytes] = []
    for part in parts:
        blocks += (writer.compress(part), writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return b"".join((*blocks, writer.flush()))


def _from_planes(data: Buffer, width: int) -> npt.NDArray[Any]:
    planes = np.frombuffer(data, np.uint8).reshape(width, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")


def _planes_decode(data: Buffer, size_bytes: int, shape: Shape) -> bytes:
    flag, frame = data[:1], memoryview(data)[1:]
    width = _words(size_bytes, shape)
    if flag == _ALL:
        planes = _zstd_decode(frame, size_bytes)
        return planes if width not in _WIDTHS else _from_planes(planes, width).tobytes()
    if flag != _MASKED or width not in _WIDTHS:
        raise ValueError("these bytes are not encoded as planes")
    count = size_bytes // width
    mask_bytes = -(-count // 8)
    declared = _zstd_size(frame)
    if not mask_bytes <= declared <= mask_bytes + size_bytes:
        raise ValueError(f"the frame declares {declared} bytes for {size_bytes}")
    decoded = memoryview(_zstd_decode(frame, declared))
    mask = np.unpackbits(np.frombuffer(decoded, np.uint8, mask_bytes), count=count).view(bool)
    if np.count_nonzero(mask) * width != declared - mask_bytes:
        raise ValueError("the mask and the planes do not fit")
    words = np.zeros(count, f"<u{width}")
    words[mask] = _from_planes(decoded[mask_bytes:], width)
    return words.tobytes()


def suits(name: str, dtype: str, shape: Shape) -> bool:
    """Whether a codec is meant for arrays of this dtype and shape.

    Pictures are uint8 ... x H x W x 3, and not empty: one, or several stacked as one file.
    """
    if name not in _PICTURES:
        return name != "planes" or dtype not in ("uint8", "int8", "bool")
    if dtype != "uint8" or len(shape) < 3 or shape[-1] != 3 or 0 in shape:
        return False
    rows = math.prod(shape[:-2])
    return max(rows, shape[-2]) < _MOST_SIDE and rows * shape[-2] < _MOST_PIXELS


def has_pictures() -> bool:
    """Whether Pillow is installed, which encodes and decodes pictures."""
    return find_spec("PIL") is not None


def _encode_picture(codec: str, data: Buffer, shape: Shape) -> bytes:
    """Encode pictures, stacked vertically, as one picture file."""
    from PIL import Image

    stack = np.frombuffer(data, np.uint8).reshape(-1, *shape[-2:])
    file = io.BytesIO()
    kind, options = _PICTURES[codec]
    Image.fromarray(stack).save(file, kind, **options)
    return file.getvalue()


def _decode_picture(codec: str, data: Buffer, size_bytes: int, shape: Shape) -> bytes:
    from PIL import Image

    width = shape[-2] if len(shape) > 2 else 0
    kind, _ = _PICTURES[codec]
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as opened:
            # Checked before anything is decoded: a small file may declare a huge size.
            if opened.mode != "RGB" or opened.width != width:
                raise ValueError(f"the picture is {opened.mode}, {opened.width} wide")
            if opened.width * opened.height * 3 != size_bytes:
                raise ValueError(f"the picture has {opened.height} rows")
            return opened.tobytes()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the {kind} cannot be read ({error})") from error


_CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw", lambda data, _: data, _raw_decode),
        Codec("zstd", lambda data, _: _zstd.compressor.compress(data), _zstd_decode),
        Codec("planes", _planes_encode, _planes_decode),
        *(
            Codec(name, partial(_encode_picture, name), partial(_decode_picture, name))
            for name in _PICTURES
        ),
    )
}
NAMES = tuple(_CODECS)


_REFERENCE_BYTES = 1 << 20
_REFERENCE_RUNS = 5


def reference_s() -> float:
    """Seconds that this machine needs to compress and decompress 1 MiB similar to activations.

    Profiles store it, to scale encoding times measured on one machine to another.
    """
    random = np.random.default_rng(0)
    values = np.maximum(random.standard_normal(_REFERENCE_BYTES // 4, np.float32), 0)
    data, durations = values.tobytes(), []
    for _ in range(_REFERENCE_RUNS):
        start_s = time.thread_time()
        _zstd_decode(_zstd.compressor.compress(data), len(data))
        durations.append(time.thread_time() - start_s)
    return min(durations)


def codec(name: str) -> Codec:
    """Find a codec by name.

    Raises:
        InputError: there is no such codec.
    """
    try:
        return _CODECS[name]
    except KeyError:
        known = ", ".join(NAMES)
        raise InputError(f"encoding {name!r} is unknown: this version has {known}") from None
