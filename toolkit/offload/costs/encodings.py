"""The encodings of a tensor on the link, and the policy that says which are allowed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from offload.errors import InputError


class TensorFormat(StrEnum):
    """The conversion of a tensor by nodes in the subgraphs.

    Attributes:
        PLAIN: none.
        HALF: cast to float16 and back.
        AFFINE: quantise to uint8 with one scale and zero point, measured on calibration inputs.
        CHANNELS: quantise to uint8 with a scale and zero point for each index of axis 1.
        SIX_BITS: as AFFINE with 64 steps over the range, which compress to fewer bits.
        FOUR_BITS: as AFFINE with 16 steps.
    """

    PLAIN = ""
    HALF = "fp16"
    AFFINE = "uint8"
    CHANNELS = "uint8-channel"
    SIX_BITS = "uint6"
    FOUR_BITS = "uint4"

    @property
    def quantises(self) -> bool:
        """Whether it is an integer form, which cannot represent NaN and infinity."""
        return self not in (TensorFormat.PLAIN, TensorFormat.HALF)

    @property
    def steps(self) -> int:
        """Quantisation steps between the smallest and the largest calibrated value."""
        return {TensorFormat.SIX_BITS: 63, TensorFormat.FOUR_BITS: 15}.get(self, 255)


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoding of a tensor on the link: a tensor format and a codec.

    Attributes:
        name: its name in plans and options.
        form: the conversion in the subgraphs.
        codec: `raw`, `zstd` or `planes` (zeros separately, the others byte by byte of
            significance, then zstd), on the bytes; `png`, `jpeg` (quality 90) or
            `jpeg95` for pictures, uint8 ... x H x W x 3.
    """

    name: str
    form: TensorFormat
    codec: str

    @property
    def is_lossless(self) -> bool:
        """Whether decoding restores every bit."""
        return self.form is TensorFormat.PLAIN and not self.codec.startswith("jpeg")

    @property
    def is_picture(self) -> bool:
        """Whether it encodes only pictures and needs Pillow on both sides."""
        return self.codec in PICTURE_CODECS

    def wire_name(self, tensor: str) -> str:
        """The name of the converted tensor, which is sent."""
        return f"{tensor}@{self.form.value}" if self.form.value else tensor

    def guard_name(self, tensor: str) -> str | None:
        """The scalar that indicates whether the tensor is finite; None if the form needs none."""
        return f"{self.wire_name(tensor)}/sum" if self.form.quantises else None

    def to_json(self) -> str:
        """Its name; `from_json` reads it."""
        return self.name

    @classmethod
    def from_json(cls, value: object) -> "Encoding":
        """The encoding of that name.

        Raises:
            TypeError: this version has no such encoding.
        """
        if value not in ENCODINGS:
            raise TypeError(f"encoding {value!r} is unknown")
        return ENCODINGS[str(value)]


PICTURE_CODECS = ("png", "jpeg", "jpeg95")
RAW = Encoding("raw", TensorFormat.PLAIN, "raw")
ZSTD = Encoding("zstd", TensorFormat.PLAIN, "zstd")
_LOSSLESS = ("raw", "zstd", "planes")
# Single bytes have no planes; fewer steps than a byte has save nothing without compression.
_CODECS: Mapping[TensorFormat, tuple[str, ...]] = {
    TensorFormat.HALF: ("raw", "zstd", "planes"),
    TensorFormat.AFFINE: ("raw", "zstd"),
    TensorFormat.CHANNELS: ("raw", "zstd"),
    TensorFormat.SIX_BITS: ("zstd",),
    TensorFormat.FOUR_BITS: ("zstd",),
}
_LOSSY: Mapping[TensorFormat, tuple[Encoding, ...]] = {
    form: tuple(
        Encoding(form.value + ("" if codec == "raw" else f"+{codec}"), form, codec)
        for codec in codecs
    )
    for form, codecs in _CODECS.items()
}
_PICTURE = tuple(Encoding(codec, TensorFormat.PLAIN, codec) for codec in PICTURE_CODECS)
ENCODINGS: Mapping[str, Encoding] = MappingProxyType(
    {
        encoding.name: encoding
        for encoding in (
            RAW,
            ZSTD,
            Encoding("planes", TensorFormat.PLAIN, "planes"),
            *(encoding for encodings in _LOSSY.values() for encoding in encodings),
            *_PICTURE,
        )
    }
)
# Words that stand for several encodings.
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lossless": _LOSSLESS,
        "any": tuple(name for name, encoding in ENCODINGS.items() if not encoding.is_picture),
        "picture": tuple(encoding.name for encoding in _PICTURE),
        **{
            form.value: (*_LOSSLESS, *(encoding.name for encoding in encodings))
            for form, encodings in _LOSSY.items()
        },
    }
)


def encoding(name: str) -> Encoding:
    """The encoding of that name.

    Raises:
        InputError: this version has no such encoding.
    """
    if name not in ENCODINGS:
        raise InputError(f"encoding {name!r} is unknown: this version has {', '.join(ENCODINGS)}")
    return ENCODINGS[name]


def parse_allowed(text: str) -> tuple[Encoding, ...]:
    """The encodings allowed by `lossless`, `any`, `fp16`, `raw,uint8+zstd`, ...; raw always is.

    The name of a form allows it with every codec, and all lossless encodings.

    Raises:
        InputError: a name that is neither an encoding nor a family.
    """
    names = ["raw"]
    for word in (part.strip() for part in text.split(",")):
        if word not in FAMILIES and word not in ENCODINGS:
            known = ", ".join(dict.fromkeys((*FAMILIES, *ENCODINGS)))
            raise InputError(f"encoding {word!r} is unknown: choose from {known}")
        names += FAMILIES.get(word, (word,))
    return tuple(ENCODINGS[name] for name in dict.fromkeys(names))


LOSSLESS = tuple(ENCODINGS[name] for name in _LOSSLESS)


@dataclass(frozen=True, slots=True)
class EncodingPolicy:
    """The encodings that may be used, and the accuracy limits for lossy ones.

    Attributes:
        encodings: the allowed encodings; raw always is.
        tolerance: largest change of an output on any calibration input, relative to its range.
        accuracy_floor: smallest share of calibration labels that must be predicted correctly.
        calibration: an .npz file or a folder of pictures; None: random inputs, lossless only.
    """

    encodings: tuple[Encoding, ...] = LOSSLESS
    tolerance: float | None = None
    accuracy_floor: float | None = None
    calibration: Path | None = None

    @property
    def is_lossless(self) -> bool:
        """Whether all allowed encodings are lossless."""
        return all(encoding.is_lossless for encoding in self.encodings)

    def without_codecs(self) -> "EncodingPolicy":
        """Only encodings that are nodes of the subgraphs, which any server can run.

        Raises:
            InputError: it allows others explicitly, but none of these.
        """
        kept = tuple(encoding for encoding in self.encodings if encoding.codec == RAW.codec)
        if kept == (RAW,) and self.encodings not in ((RAW,), LOSSLESS):
            names = ", ".join(each.name for each in self.encodings if each is not RAW)
            raise InputError(
                f"only our own server decodes {names}: allow raw, fp16, uint8 or uint8-channel"
            )
        return replace(self, encodings=kept)

    @classmethod
    def parse(
        cls,
        encodings: str = "",
        tolerance: float | None = None,
        accuracy_floor: float | None = None,
        calibration: Path | None = None,
    ) -> "EncodingPolicy":
        """Build the policy from command-line options; lossless unless a limit is given.

        Raises:
            InputError: an unknown encoding, a limit out of its range, or lossy encodings without
                a limit or without calibration inputs.
        """
        limited = tolerance is not None or accuracy_floor is not None
        allowed = parse_allowed(encodings or ("any" if limited else "lossless"))
        if tolerance is not None and not 0 <= tolerance < float("inf"):
            raise InputError(f"--tolerance must be 0 or more, like 0.01, not {tolerance:g}")
        if accuracy_floor is not None and not 0 <= accuracy_floor <= 1:
            raise InputError(f"--accuracy-floor is a share from 0 to 1, not {accuracy_floor:g}")
        policy = cls(allowed, tolerance, accuracy_floor, calibration)
        if policy.is_lossless:
            return policy
        if not limited:
            raise InputError(
                f"--encoding {encodings} loses precision: set a limit with --tolerance or"
                " --accuracy-floor"
            )
        if calibration is None:
            raise InputError(
                "lossy encodings need real inputs to check: give some with --calibration"
            )
        return policy
