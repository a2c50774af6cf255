"""What may cross the link for one bundle: names, dtypes, shapes, encodings, sizes, by plan."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from offload.bundle.bundle import Bundle, Value
from offload.encoding.encoding import ENCODINGS
from offload.errors import BundleError
from offload.plan.plan import Segment, Send, Side

from offload_runtimes.engine import dtype_of
from offload_runtimes.wire import codecs

_HEADER_BYTES = 64 * 1024
_UNKNOWN_BYTES = 64 * 1024 * 1024
_SLACK = 16  # how much larger than predicted a tensor of dynamic shape may become


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor that may cross the link.

    Attributes:
        value: its name, ORT type and shape; None where this end only sends it.
        encoding: name of its codec.
        limit_bytes: the most it may take, decoded.
        expected_bytes: what it is expected to take; 0 when nothing is known.
    """

    value: Value | None
    encoding: str
    limit_bytes: int
    expected_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What the bytes of a tensor mean, as a contract allows it.

    Attributes:
        name: the tensor.
        dtype: of its elements, little-endian.
        shape: its sizes.
        codec: how the bytes were encoded.
        size_bytes: what they decode to.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    codec: str
    size_bytes: int


class Ports(dict[str, Port]):
    """The tensors that may cross one way, by name.

    Attributes:
        seen: layouts that were found to be allowed, by their bytes.
    """

    def __init__(self, ports: Mapping[str, Port]) -> None:
        super().__init__(ports)
        self.seen: dict[bytes, Layout] = {}


@dataclass(frozen=True)
class Contract:
    """What both ends of a session agreed on by naming a bundle, for one of its plans.

    Attributes:
        digest: the bundle.
        segments: the server's segments.
        uploads: tensors the device may send.
        downloads: tensors the server may send.
    """

    digest: str
    segments: tuple[Segment, ...]
    uploads: Ports
    downloads: Ports

    @property
    def message_limit_bytes(self) -> int:
        """The largest message either end may send."""
        ports = (*self.uploads.values(), *self.downloads.values())
        return _HEADER_BYTES + max((port.limit_bytes for port in ports), default=0)

    @property
    def answer_bytes(self) -> int:
        """Bytes expected back for one frame."""
        return sum(port.expected_bytes for port in self.downloads.values())


def contracts(bundle: Bundle, values: Mapping[str, Value]) -> tuple[Contract, ...]:
    """The contracts of a bundle, one a plan.

    Args:
        bundle: the bundle.
        values: type and shape of every tensor this end knows (receives, at least).

    Raises:
        BundleError: a plan names an encoding this version lacks.
    """
    return tuple(
        Contract(
            bundle.digest,
            plan.on(Side.SERVER),
            _ports(plan.uploads, values),
            _ports(plan.downloads, values),
        )
        for plan in bundle.plans
    )


def message_limit_bytes(agreed: Iterable[Contract]) -> int:
    """The largest message that either end may send under any of some contracts."""
    return max((each.message_limit_bytes for each in agreed), default=0)


def _ports(sends: Iterable[Send], values: Mapping[str, Value]) -> Ports:
    ports = Ports({})
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
        limit = max(_HEADER_BYTES, _SLACK * expected) if expected else _UNKNOWN_BYTES
        ports[send.wire] = Port(
            value,
            known.codec,
            limit if exact is None else exact,
            expected if exact is None else exact,
        )
    return ports


def _exact_bytes(value: Value) -> int | None:
    """Bytes of a tensor whose shape is fixed."""
    fixed = [size for size in value.shape or () if isinstance(size, int)]
    if value.shape is None or len(fixed) < len(value.shape):
        return None
    return math.prod(fixed) * dtype_of(value.type).itemsize
