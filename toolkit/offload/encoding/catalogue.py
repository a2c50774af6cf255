"""The catalogue noun: what every tensor of a graph takes under every encoding, measured."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from offload.encoding.affine import Affine
from offload.encoding.encoding import Encoding

# Float16 ends at 65504; inputs beyond the calibration's may be larger than those seen.
HALF_LIMIT = 65504.0 / 8


@dataclass(frozen=True, slots=True)
class Encoded:
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


@dataclass(frozen=True)
class Catalogue:
    """What each tensor may become.

    Attributes:
        tensors: by tensor, its encodings; raw is implied.
        codec_s: seconds that the measuring machine needs for the reference work that profiles
            state too, so that seconds can be carried over to other machines.
        whole_s: seconds it needs for the whole model, for profiles that state no `codec_s`.
        inputs: number of calibration inputs.
    """

    tensors: Mapping[str, tuple[Encoded, ...]] = field(default_factory=dict)
    codec_s: float = 0.0
    whole_s: float = 0.0
    inputs: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def allowing(self, encodings: Collection[Encoding]) -> "Catalogue":
        """Only these encodings."""
        return self._kept(
            {
                name: [entry for entry in entries if entry.encoding in encodings]
                for name, entries in self.tensors.items()
            }
        )

    def without(self, banned: Collection[tuple[str, Encoding]]) -> "Catalogue":
        """Less some (tensor, encoding) pairs."""
        return self._kept(
            {
                name: [entry for entry in entries if (name, entry.encoding) not in banned]
                for name, entries in self.tensors.items()
            }
        )

    def of(self, tensor: str) -> tuple[Encoded, ...]:
        """The encodings of a tensor, raw aside."""
        return self.tensors.get(tensor, ())

    def _kept(self, tensors: Mapping[str, Iterable[Encoded]]) -> "Catalogue":
        kept = {name: tuple(entries) for name, entries in tensors.items()}
        return Catalogue(kept, self.codec_s, self.whole_s, self.inputs)
