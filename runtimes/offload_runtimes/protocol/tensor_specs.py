"""What may cross the link for one bundle: names, dtypes, shapes, encodings, sizes, by plan."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle, ModelValue
from offload.costs.encodings import ENCODINGS
from offload.errors import BundleError
from offload.planning.plan import Segment, Send, Side

from offload_runtimes.engine import DTYPES
from offload_runtimes.protocol import codecs

HEADER_BYTES = 64 * 1024  # what a message may take beside its tensor
MESSAGE_LIMIT_BYTES = 2**31 - 1  # gRPC counts in an int
TENSOR_LIMIT_BYTES = MESSAGE_LIMIT_BYTES - HEADER_BYTES
_CODEC_SHARE = 64
_OBJECTS = 32  # bytes of Python objects that one byte of a `ModelValue` may become


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that may cross the link.

    Attributes:
        value: its name, ORT type and shape; None where this end only sends it.
        encoding: name of its codec.
        limit_bytes: the most it may take, decoded: what a fixed shape takes, else a stated limit.
        expected_bytes: what it is expected to take; 0 when nothing is known.
    """

    value: ModelValue | None
    encoding: str
    limit_bytes: int
    expected_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the bytes of a tensor mean, as a contract allows it.

    Attributes:
        name: the tensor.
        dtype: of its elements, little-endian; None: the bytes are those of text, a sequence or a
            map (`wire.structured`).
        shape: its sizes.
        codec: how the bytes were encoded.
        size_bytes: what they decode to.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    codec: str
    size_bytes: int

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory at most: text and maps become Python objects."""
        return self.size_bytes if self.dtype is not None else _OBJECTS * self.size_bytes


class TensorSpecs(dict[str, TensorSpec]):
    """The tensors that may cross one way, by name.

    Attributes:
        seen: layouts that were found to be allowed, by their bytes.
    """

    def __init__(self, ports: Mapping[str, TensorSpec]) -> None:
        super().__init__(ports)
        self.seen: dict[bytes, TensorHeader] = {}


@dataclass(frozen=True)
class Contract:
    """What both ends of a session agreed on by naming a bundle, for one of its plans.

    Attributes:
        digest: the bundle.
        segments: the server's segments.
        uploads: tensors the device may send.
        downloads: tensors the server may send.
        defaults: by part, the inputs with a default that the device may send besides.
    """

    digest: str
    segments: tuple[Segment, ...]
    uploads: TensorSpecs
    downloads: TensorSpecs
    defaults: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def answer_bytes(self) -> int:
        """Bytes expected back for one frame."""
        return sum(port.expected_bytes for port in self.downloads.values())


def contracts(
    bundle: Bundle, values: Mapping[str, ModelValue], limit_bytes: int = TENSOR_LIMIT_BYTES
) -> tuple[Contract, ...]:
    """The contracts of a bundle, one a plan.

    The shapes of uploads are checked, since they are those of an engine's inputs. Those of
    downloads are not: models often declare other shapes of their outputs than they give.

    Args:
        bundle: the bundle.
        values: type and shape of every tensor this end knows (receives, at least).
        limit_bytes: the most that a tensor without a fixed shape may take, decoded.

    Raises:
        BundleError: a plan names an encoding this version lacks.
    """
    shapeless = {name: replace(value, shape=None) for name, value in values.items()}
    found = []
    for plan in bundle.plans:
        segments = plan.on(Side.SERVER)
        defaults = {s.part: names for s in segments if (names := bundle.defaults_of(s.part))}
        given = [Send(name, None) for name in dict.fromkeys(sum(defaults.values(), ()))]
        uploads = _ports((*plan.uploads, *given), values, limit_bytes)
        downloads = _ports(plan.downloads, shapeless, limit_bytes)
        found.append(Contract(bundle.digest, segments, uploads, downloads, defaults))
    return tuple(found)


def upload_limit_bytes(agreed: Iterable[Contract]) -> int:
    """The largest message that a device may send under any of some contracts."""
    ports = [port for each in agreed for port in each.uploads.values()]
    largest = max((port.limit_bytes for port in ports), default=0)
    longer = largest // _CODEC_SHARE  # what does not compress becomes a little longer
    return min(HEADER_BYTES + largest + longer, MESSAGE_LIMIT_BYTES)


def _ports(
    sends: Iterable[Send], values: Mapping[str, ModelValue], limit_bytes: int
) -> TensorSpecs:
    ports = TensorSpecs({})
    for send in sends:
        known = ENCODINGS.get(send.encoding)
        if known is None or known.codec not in codecs.NAMES:
            raise BundleError(
                f"the plan sends {send.tensor!r} as {send.encoding!r}, which this version"
                " cannot: update onnx-offload on this machine"
            )
        if known.is_picture and not codecs.has_pictures():
            raise BundleError(
                f"the plan sends {send.tensor!r} as {send.encoding}, which needs Pillow on this"
                " machine: pip install 'pillow>=10.1'"
            )
        value = values.get(send.wire)
        exact = None if value is None else _exact_bytes(value)
        expected = send.tensor_bytes or send.size_bytes or 0
        ports[send.wire] = TensorSpec(
            value,
            known.codec,
            limit_bytes if exact is None else exact,
            expected if exact is None else exact,
        )
    return ports


def _exact_bytes(value: ModelValue) -> int | None:
    """Bytes of a tensor of numbers whose shape is fixed."""
    dtype = DTYPES.get(value.type)
    fixed = [size for size in value.shape or () if isinstance(size, int)]
    if dtype is None or value.shape is None or len(fixed) < len(value.shape):
        return None
    return math.prod(fixed) * dtype.itemsize
