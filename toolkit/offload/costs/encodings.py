"""The encodings of a tensor on the link, and which of them a user allows."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from offload.errors import InputError


class TensorFormat(StrEnum):
    """What the subgraphs do to a tensor.

    Attributes:
        PLAIN: nothing.
        HALF: cast to float16 and back.
        AFFINE: to uint8 by one scale and zero point, measured on calibration inputs.
        CHANNELS: to uint8 by a scale and zero point for each index of axis 1.
        SIX_BITS: as AFFINE, 64 steps over the range: fewer bits once they are compressed.
        FOUR_BITS: 16 steps.
    """

    PLAIN = ""
    HALF = "fp16"
    AFFINE = "uint8"
    CHANNELS = "uint8-channel"
    SIX_BITS = "uint6"
    FOUR_BITS = "uint4"

    @property
    def quantises(self) -> bool:
        """Whether NaN and infinity have no place in it."""
        return self not in (TensorFormat.PLAIN, TensorFormat.HALF)

    @property
    def steps(self) -> int:
        """Steps from the least calibrated value to the greatest."""
        return {TensorFormat.SIX_BITS: 63, TensorFormat.FOUR_BITS: 15}.get(self, 255)


@dataclass(frozen=True, slots=True)
class Encoding:
    """One way for a tensor to cross.

    Attributes:
        name: what plans and people call it.
        form: its nodes.
        codec: `raw`, `zstd` or `planes` (zeros apart, the rest byte by byte of significance, then
            zstd), on the bytes; `png` or `jpeg` of pictures, uint8 ... x H x W x 3.
    """

    name: str
    form: TensorFormat
    codec: str

    @property
    def is_lossless(self) -> bool:
        """Whether every bit comes back."""
        return self.form is TensorFormat.PLAIN and self.codec != "jpeg"

    @property
    def is_picture(self) -> bool:
        """Whether it is for pictures only, and needs Pillow on both sides."""
        return self.codec in ("png", "jpeg")

    def wire_name(self, tensor: str) -> str:
        """What a tensor is called while it crosses."""
        return f"{tensor}@{self.form.value}" if self.form.value else tensor

    def guard_name(self, tensor: str) -> str | None:
        """The scalar that tells whether the tensor is finite; None where nothing is lost."""
        return f"{self.wire_name(tensor)}/sum" if self.form.quantises else None


RAW = Encoding("raw", TensorFormat.PLAIN, "raw")
ZSTD = Encoding("zstd", TensorFormat.PLAIN, "zstd")
# Bytes have no planes; fewer steps than a byte's are no gain before they are compressed.
_CODECS: Mapping[TensorFormat, tuple[str, ...]] = MappingProxyType(
    {
        TensorFormat.HALF: ("raw", "zstd", "planes"),
        TensorFormat.AFFINE: ("raw", "zstd"),
        TensorFormat.CHANNELS: ("raw", "zstd"),
        TensorFormat.SIX_BITS: ("zstd",),
        TensorFormat.FOUR_BITS: ("zstd",),
    }
)
_LOSSLESS = ("raw", "zstd", "planes")


def _named(form: TensorFormat, codec: str) -> Encoding:
    return Encoding(form.value + ("" if codec == "raw" else f"+{codec}"), form, codec)


ENCODINGS: Mapping[str, Encoding] = MappingProxyType(
    {
        encoding.name: encoding
        for encoding in (
            RAW,
            ZSTD,
            Encoding("planes", TensorFormat.PLAIN, "planes"),
            *(_named(form, codec) for form, codecs in _CODECS.items() for codec in codecs),
            *(Encoding(codec, TensorFormat.PLAIN, codec) for codec in ("png", "jpeg")),
        )
    }
)
# Words that stand for several encodings.
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lossless": _LOSSLESS,
        "any": tuple(name for name, each in ENCODINGS.items() if not each.is_picture),
        "picture": ("png", "jpeg"),
        **{
            form.value: (*_LOSSLESS, *(_named(form, codec).name for codec in codecs))
            for form, codecs in _CODECS.items()
        },
    }
)


def encoding(name: str) -> Encoding:
    """The encoding of that name.

    Raises:
        InputError: there is none.
    """
    try:
        return ENCODINGS[name]
    except KeyError:
        known = ", ".join(ENCODINGS)
        raise InputError(f"encoding {name!r} is unknown: this version has {known}") from None


def parse_allowed(text: str) -> tuple[Encoding, ...]:
    """The encodings that `lossless`, `any`, `fp16`, `raw,uint8+zstd`, ... allow; raw always.

    A form's plain name allows it with every codec, and what is lossless.

    Raises:
        InputError: a name that is neither an encoding nor a family.
    """
    names = ["raw"]
    for word in (part.strip() for part in text.split(",")):
        if word not in FAMILIES and word not in ENCODINGS:
            known = ", ".join(dict.fromkeys((*FAMILIES, *ENCODINGS)))
            raise InputError(f"encoding {word!r} is unknown: choose of {known}")
        names += FAMILIES.get(word, (word,))
    return tuple(ENCODINGS[name] for name in dict.fromkeys(names))


LOSSLESS = tuple(ENCODINGS[name] for name in FAMILIES["lossless"])


@dataclass(frozen=True, slots=True)
class EncodingPolicy:
    """What may be lost on the way.

    Attributes:
        encodings: those allowed; raw always is.
        tolerance: the outputs may change by this part of their range on every calibration input.
        accuracy_floor: at least this share of the calibration's labels must come out right.
        calibration: an .npz file or a folder of pictures; None: random inputs, lossless only.
    """

    encodings: tuple[Encoding, ...] = LOSSLESS
    tolerance: float | None = None
    accuracy_floor: float | None = None
    calibration: Path | None = None

    @property
    def is_lossless(self) -> bool:
        """Whether every output stays what it was."""
        return all(encoding.is_lossless for encoding in self.encodings)

    @classmethod
    def parse(
        cls,
        encodings: str = "",
        tolerance: float | None = None,
        accuracy_floor: float | None = None,
        calibration: Path | None = None,
    ) -> "EncodingPolicy":
        """The allowance of a user's words; nothing is lost unless a limit says how much.

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
        wish = cls(allowed, tolerance, accuracy_floor, calibration)
        if wish.is_lossless:
            return wish
        if not limited:
            raise InputError(
                f"--encoding {encodings} loses precision: say how much with --tolerance or"
                " --accuracy-floor"
            )
        if calibration is None:
            raise InputError(
                "lossy encodings are judged on real inputs: give some with --calibration"
            )
        return wish
