"""The encoding table: measured bytes and seconds of every tensor under every encoding."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from offload.costs.encodings import Encoding
from offload.costs.quantization import Affine
from offload.records import fields_to_json, read_version

# Raise it whenever a form or codec gives other bytes, so that cached tables are measured again.
TABLE_FORMAT = 2
# Float16 ends at 65504; inference may see larger values than the calibration.
HALF_LIMIT = 65504.0 / 8


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
