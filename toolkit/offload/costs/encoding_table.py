"""The encoding table: bytes and seconds of every tensor under every encoding, measured."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from offload.costs.encodings import Encoding, encoding
from offload.costs.quantization import Affine
from offload.errors import InputError
from offload.records import from_json, to_json

# Another number whenever a form or codec comes to other bytes: what was kept is then measured anew.
CATALOGUE_FORMAT = 1
# Float16 ends at 65504; inputs beyond the calibration's may be larger than those seen.
HALF_LIMIT = 65504.0 / 8


@dataclass(frozen=True, slots=True)
class EncodedSize:
    """One tensor under one encoding, over the calibration inputs.

    Attributes:
        encoding: which.
        mean_bytes: bytes on the wire, on average.
        p95_bytes: 95 of 100 inputs take no more.
        encode_s: seconds to encode on the machine that measured.
        decode_s: seconds to decode there.
        affine: scale and zero point where the form needs them.
    """

    encoding: Encoding
    mean_bytes: int
    p95_bytes: int
    encode_s: float
    decode_s: float
    affine: Affine | None = None

    def to_json(self) -> list[Any]:
        """A row; `from_json` reads it."""
        affine = to_json(self.affine)
        figures = (self.mean_bytes, self.p95_bytes, self.encode_s, self.decode_s)
        return [self.encoding.name, *figures, affine]

    @classmethod
    def from_json(cls, value: list[Any]) -> "EncodedSize":
        """Read what `to_json` wrote."""
        name, mean_bytes, p95_bytes, encode_s, decode_s, affine = value
        its = from_json(Affine, affine) if affine else None
        return cls(encoding(name), mean_bytes, p95_bytes, encode_s, decode_s, its)


@dataclass(frozen=True)
class EncodingTable:
    """What each tensor may become.

    Attributes:
        tensors: by tensor, its encodings; raw is implied.
        codec_s: seconds that the measuring machine needs for the reference work that profiles
            state too, so that seconds can be carried over to other machines.
        whole_s: seconds it needs for the whole model, for profiles that state no `codec_s`.
        inputs: number of calibration inputs.
    """

    tensors: Mapping[str, tuple[EncodedSize, ...]] = field(default_factory=dict)
    codec_s: float = 0.0
    whole_s: float = 0.0
    inputs: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def allowing(self, encodings: Collection[Encoding]) -> "EncodingTable":
        """Only these encodings."""
        return self._kept(
            {
                name: [entry for entry in entries if entry.encoding in encodings]
                for name, entries in self.tensors.items()
            }
        )

    def without(self, banned: Collection[tuple[str, Encoding]]) -> "EncodingTable":
        """Less some (tensor, encoding) pairs."""
        return self._kept(
            {
                name: [entry for entry in entries if (name, entry.encoding) not in banned]
                for name, entries in self.tensors.items()
            }
        )

    def of(self, tensor: str) -> tuple[EncodedSize, ...]:
        """The encodings of a tensor, raw aside."""
        return self.tensors.get(tensor, ())

    def _kept(self, tensors: Mapping[str, Iterable[EncodedSize]]) -> "EncodingTable":
        kept = {name: tuple(entries) for name, entries in tensors.items()}
        return EncodingTable(kept, self.codec_s, self.whole_s, self.inputs)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with a format number; `from_json` reads it."""
        return {
            "format": CATALOGUE_FORMAT,
            "codec_s": self.codec_s,
            "whole_s": self.whole_s,
            "inputs": self.inputs,
            "tensors": {name: [e.to_json() for e in each] for name, each in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EncodingTable":
        """Read what `to_json` wrote.

        Raises:
            InputError: another format, or a field is missing or of the wrong kind.
        """
        if value.get("format") != CATALOGUE_FORMAT:
            raise InputError(
                f"catalogue has format {value.get('format')!r}, this version reads"
                f" {CATALOGUE_FORMAT}: measure again with --again"
            )
        try:
            tensors = {
                name: tuple(map(EncodedSize.from_json, each))
                for name, each in value["tensors"].items()
            }
            return cls(tensors, value["codec_s"], value["whole_s"], value["inputs"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"catalogue is damaged ({error!r}): measure again") from error
