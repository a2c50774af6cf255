"""The allowance noun: which encodings a user lets tensors have, and what they may cost."""

from dataclasses import dataclass
from pathlib import Path

from offload.encoding.encoding import ENCODINGS, FAMILIES, Encoding, parse_allowed
from offload.errors import InputError

LOSSLESS = tuple(ENCODINGS[name] for name in FAMILIES["lossless"])


@dataclass(frozen=True, slots=True)
class Allowance:
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
    ) -> "Allowance":
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
