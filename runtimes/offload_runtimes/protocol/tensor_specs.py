"""The tensors that may be sent for a bundle: names, dtypes, shapes, encodings, sizes, by plan."""

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

HEADER_BYTES = 64 * 1024  # of a message, in addition to its tensor
MESSAGE_LIMIT_BYTES = 2**31 - 1  # gRPC counts in an int
TENSOR_LIMIT_BYTES = MESSAGE_LIMIT_BYTES - HEADER_BYTES
_CODEC_SHARE = 64
_OBJECTS = 32  # largest size of Python objects for one byte of an encoded value


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that may be sent.

    Attributes:
        value: its name, onnxruntime type and shape; None if this end only sends it.
        codec: name of its codec.
        limit_bytes: its largest size, decoded: the size of a fixed shape, or a configured limit.
        expected_bytes: its expected size; 0 if unknown.
    """

    value: ModelValue | None
    codec: str
    limit_bytes: int
    expected_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Name, type, shape and encoding of a tensor in a message, checked against a contract.

    Attributes:
        name: the tensor.
        dtype: of its elements, little-endian; None: the bytes are text, a sequence or a map
            (`structured_values`).
        shape: its sizes.
        codec: name of the codec of the bytes.
        size_bytes: size when decoded.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    codec: str
    size_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Largest size in memory: text and maps become Python objects."""
        return self.size_bytes if self.dtype is not None else _OBJECTS * self.size_bytes


class TensorSpecs(dict[str, TensorSpec]):
    """The tensors that may be sent in one direction, by name.

    Attributes:
        headers: headers that were checked and allowed, by their bytes in messages.
    """

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        super().__init__(specs)
        self.headers: dict[bytes, TensorHeader] = {}


@dataclass(frozen=True)
class Contract:
    """The tensors that may be sent in a session, for one plan of its bundle.

    Attributes:
        digest: the bundle.
        segments: the server's segments.
        uploads: tensors the device may send.
        downloads: tensors the server may send.
        defaults: by part, the inputs with a default that the device may also send.
    """

    digest: str
    segments: tuple[Segment, ...]
    uploads: TensorSpecs
    downloads: TensorSpecs
    defaults: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def answer_bytes(self) -> int:
        """Expected bytes of all downloads of one frame."""
        return sum(spec.expected_bytes for spec in self.downloads.values())


def contracts(
    bundle: Bundle, values: Mapping[str, ModelValue], limit_bytes: int = TENSOR_LIMIT_BYTES
) -> tuple[Contract, ...]:
    """The contracts of a bundle, one for each plan.

    The shapes of uploads are checked, as they are inputs of an engine. Those of downloads are not:
    models often declare other shapes for their outputs than they compute.

    Args:
        bundle: the bundle.
        values: type and shape of every tensor that this end receives.
        limit_bytes: largest size, decoded, of a tensor without a fixed shape.

    Raises:
        BundleError: a plan uses an encoding that this version does not have.
    """
    without_shapes = {name: replace(value, shape=None) for name, value in values.items()}
    result = []
    for plan in bundle.plans:
        segments = plan.on(Side.SERVER)
        defaults = {s.part: names for s in segments if (names := bundle.defaults_of(s.part))}
        optional = [Send(name, None) for name in dict.fromkeys(sum(defaults.values(), ()))]
        uploads = _specs((*plan.uploads, *optional), values, limit_bytes)
        downloads = _specs(plan.downloads, without_shapes, limit_bytes)
        result.append(Contract(bundle.digest, segments, uploads, downloads, defaults))
    return tuple(result)


def input_specs(values: Iterable[ModelValue], limit_bytes: int) -> TensorSpecs:
    """The specs of a model's inputs that are sent raw; `limit_bytes` for those of any shape."""
    named = {value.name: value for value in values}
    return _specs((Send(name, None) for name in named), named, limit_bytes)


def upload_limit_bytes(contracts: Iterable[Contract]) -> int:
    """Largest message that a device may send under any of some contracts."""
    specs = [spec for contract in contracts for spec in contract.uploads.values()]
    largest = max((spec.limit_bytes for spec in specs), default=0)
    growth = largest // _CODEC_SHARE  # a tensor that does not compress becomes a little longer
    return min(HEADER_BYTES + largest + growth, MESSAGE_LIMIT_BYTES)


def _specs(
    sends: Iterable[Send], values: Mapping[str, ModelValue], limit_bytes: int
) -> TensorSpecs:
    specs = TensorSpecs({})
    for send in sends:
        encoding = ENCODINGS.get(send.encoding)
        if encoding is None or encoding.codec not in codecs.NAMES:
            raise BundleError(
                f"the plan sends {send.tensor!r} as {send.encoding!r}, which this version does not"
                " have: update onnx-offload on this machine"
            )
        if encoding.is_picture and not codecs.has_pictures():
            raise BundleError(
                f"the plan sends {send.tensor!r} as {send.encoding}, which needs Pillow on this"
                " machine: pip install 'pillow>=10.1'"
            )
        value = values.get(send.wire)
        expected_bytes = send.tensor_bytes or send.size_bytes or 0
        spec = TensorSpec(value, encoding.codec, limit_bytes, expected_bytes)
        if value is not None and (dtype := DTYPES.get(value.type)) and value.shape is not None:
            fixed = [size for size in value.shape if isinstance(size, int)]
            if len(fixed) == len(value.shape):
                exact_bytes = math.prod(fixed) * dtype.itemsize
                spec = replace(spec, limit_bytes=exact_bytes, expected_bytes=exact_bytes)
        specs[send.wire] = spec
    return specs
