"""The encoding table, and the cost of sending a tensor with each of its encodings."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from offload.costs.encodings import RAW, Encoding
from offload.costs.profile import Profile
from offload.costs.quantization import Affine
from offload.records import fields_to_json, read_version

# Raise it whenever a form or codec gives other bytes, so that cached tables are measured again.
TABLE_FORMAT = 2
# Float16 ends at 65504; inference may see larger values than the calibration.
HALF_LIMIT = 65504.0 / 8
# An encoding must save this share of the raw transfer for an input that compresses badly, with
# encoding and decoding `CODEC_SLOWDOWN` times slower than measured: timings and sizes vary.
MIN_SAVING = 0.02
CODEC_SLOWDOWN = 2.0


@dataclass(frozen=True, slots=True)
class EncodedSize:
    """Bytes and seconds of one tensor under one encoding, over the calibration inputs.

    Attributes:
        encoding: the encoding.
        mean_bytes: bytes on the wire, on average.
        p95_bytes: 95th percentile of the bytes on the wire.
        encode_s: seconds to encode on the machine that measured.
        decode_s: seconds to decode there.
        affine: scale and zero point if the form needs them.
    """

    encoding: Encoding
    mean_bytes: int
    p95_bytes: int
    encode_s: float
    decode_s: float
    affine: Affine | None = None


@dataclass(frozen=True)
class EncodingTable:
    """The encodings measured for each tensor.

    Attributes:
        tensors: the encodings by tensor name; raw is implied.
        codec_s: seconds that the measuring machine takes for the codec reference work, which
            profiles state too, so that seconds can be converted to other machines.
        whole_s: seconds that it takes for the whole model, for profiles without `codec_s`.
        inputs: number of calibration inputs.
    """

    tensors: Mapping[str, tuple[EncodedSize, ...]] = field(default_factory=dict)
    codec_s: float = 0.0
    whole_s: float = 0.0
    inputs: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def allowing(self, encodings: Collection[Encoding]) -> "EncodingTable":
        """The table with only these encodings."""
        every = {(name, item.encoding) for name, items in self.tensors.items() for item in items}
        return self.without({pair for pair in every if pair[1] not in encodings})

    def without(self, banned: Collection[tuple[str, Encoding]]) -> "EncodingTable":
        """The table without some (tensor, encoding) pairs."""
        tensors = {
            name: tuple(item for item in items if (name, item.encoding) not in banned)
            for name, items in self.tensors.items()
        }
        return EncodingTable(tensors, self.codec_s, self.whole_s, self.inputs)

    def of(self, tensor: str) -> tuple[EncodedSize, ...]:
        """The encodings of a tensor, without raw."""
        return self.tensors.get(tensor, ())

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {"format": TABLE_FORMAT, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EncodingTable":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format, or a field is missing or has the wrong type.
        """
        remedy = "measure again with --again"
        return read_version(cls, value, TABLE_FORMAT, name="encoding table", remedy=remedy)


@dataclass(frozen=True, slots=True)
class TransferOption:
    """The cost of sending one tensor with one encoding.

    Attributes:
        encoding: how it is encoded.
        raw_bytes: bytes of the tensor itself.
        size_bytes: mean bytes on the wire.
        p95_bytes: 95 of 100 inputs take no more.
        encode_s: seconds of the sender.
        link_s: seconds on the link for the mean size.
        p95_link_s: 95 of 100 inputs take no longer.
        decode_s: seconds of the receiver.
        affine: scale and zero point where the encoding needs them.
    """

    encoding: Encoding
    raw_bytes: int
    size_bytes: int
    p95_bytes: int
    encode_s: float
    link_s: float
    p95_link_s: float
    decode_s: float
    affine: Affine | None = None

    @property
    def total_s(self) -> float:
        """Seconds when nothing overlaps."""
        return self.encode_s + self.link_s + self.decode_s

    @property
    def slow_s(self) -> float:
        """Seconds for an input that compresses badly, encoded and decoded slowly."""
        return CODEC_SLOWDOWN * (self.encode_s + self.decode_s) + self.p95_link_s


TransferOptions = Mapping[str, tuple[TransferOption, ...]]
"""By tensor name: the encodings it may be sent with, the chosen one first."""


def transfer_options(
    sizes: Mapping[str, int],
    table: EncodingTable,
    sender: Profile,
    receiver: Profile,
    link_s: Callable[[float], float],
) -> dict[str, tuple[TransferOption, ...]]:
    """By tensor: raw, and each encoding that is faster than raw even if it runs slowly.

    Args:
        sizes: bytes of each tensor that may be sent.
        table: measured sizes of encoded tensors, with seconds of the machine that measured.
        sender: profile of the machine that encodes.
        receiver: profile of the machine that decodes. Either may know sizes that depend on data.
        link_s: seconds on the link for a number of bytes.
    """
    encode_factor, decode_factor = _codec_factor(sender, table), _codec_factor(receiver, table)
    options = {}
    for name, size_bytes in sizes.items():
        measured = sender.sizes.get(name) or receiver.sizes.get(name)
        p95_bytes = size_bytes if measured is None else max(size_bytes, measured.p95_bytes)
        raw_s = (0.0, link_s(size_bytes), link_s(p95_bytes), 0.0)
        raw = TransferOption(RAW, size_bytes, size_bytes, p95_bytes, *raw_s)
        encoded = [
            TransferOption(
                entry.encoding,
                size_bytes,
                entry.mean_bytes,
                entry.p95_bytes,
                entry.encode_s * encode_factor,
                link_s(entry.mean_bytes),
                link_s(entry.p95_bytes),
                entry.decode_s * decode_factor,
                entry.affine,
            )
            for entry in table.of(name)
        ]
        limit_s = raw.total_s * (1 - MIN_SAVING)
        options[name] = (raw, *(option for option in encoded if option.slow_s < limit_s))
    return options


def _codec_factor(profile: Profile, table: EncodingTable) -> float:
    """How many times slower a machine is than the one that measured the table."""
    if profile.codec_s and table.codec_s:
        return profile.codec_s / table.codec_s
    return profile.whole_s / table.whole_s if table.whole_s else 1.0
