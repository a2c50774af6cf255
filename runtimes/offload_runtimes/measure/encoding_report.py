"""What every tensor at a bundle's cut takes under every encoding, and what that does."""

from dataclasses import dataclass

import numpy as np
from offload.bundle.bundle import Bundle
from offload.bundle.engine_input import exposed_inputs
from offload.costs.encoding_table import EncodedSize
from offload.costs.encodings import ENCODINGS, RAW, Encoding
from offload.planning.plan import Send

from offload_runtimes.engine import Array, EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.accuracy import AccuracyTrial, Effect, LossyCrossing
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.encoding_sizes import EncodingSurvey
from offload_runtimes.protocol.codecs import has_pictures


@dataclass(frozen=True, slots=True)
class EncodingRow:
    """One encoding of one tensor: its figures, and what it alone does to the outputs."""

    measured: EncodedSize
    effect: Effect


@dataclass(frozen=True)
class CutTensor:
    """A tensor at the cut, over the calibration inputs.

    Attributes:
        send: as the plan sends it.
        dtype: numpy's name of its type.
        shape: of the first input.
        zeros: share of values that are 0.
        raw_bytes: mean bytes as it is.
        ways: every encoding that suits it, raw first.
    """

    send: Send
    dtype: str
    shape: tuple[int, ...]
    zeros: float
    raw_bytes: float
    ways: tuple[EncodingRow, ...]

    @property
    def used(self) -> EncodingRow | None:
        """The way that the plan takes; None where it does not suit these inputs."""
        return next(
            (way for way in self.ways if way.measured.encoding.name == self.send.encoding), None
        )

    @property
    def prediction_error(self) -> float | None:
        """How far the plan's predicted size is off on these inputs, relative to what they take."""
        if self.used is None or not self.send.size_bytes or not self.used.measured.mean_bytes:
            return None
        return self.send.size_bytes / self.used.measured.mean_bytes - 1


@dataclass(frozen=True)
class EncodeReport:
    """A bundle's cut.

    Attributes:
        tensors: those at the cut, in order of sending.
        effect: of the plan as a whole.
        unproven: why the inputs don't show what an encoding changes; None: they do.
    """

    tensors: tuple[CutTensor, ...]
    effect: Effect
    unproven: str | None = None


def encode_report(
    bundle: Bundle,
    calibration: Calibration,
    options: EngineOptions,
    progress: Progress = lambda _: None,
) -> EncodeReport:
    """Run both parts on the inputs with the cut's tensors in every encoding, one at a time.

    Seconds are this machine's. O(inputs x tensors x encodings) runs of the server's part.

    Args:
        bundle: both sides' files must be there.
        calibration: inputs.
        options: how onnxruntime runs.
        progress: called with a phrase before each step.

    Raises:
        InputError: the model refuses an input.
    """
    progress("running the device's part")
    rehearsal = AccuracyTrial(bundle.plan, exposed_inputs(bundle), calibration, options)
    found = []
    for send in bundle.plan.uploads:
        progress(f"encoding {send.tensor}")
        found.append(_tensor(send, rehearsal))
    planned = rehearsal.planned()
    return EncodeReport(tuple(found), rehearsal.effect(planned), rehearsal.unproven(planned))


def _tensor(send: Send, rehearsal: AccuracyTrial) -> CutTensor:
    arrays = rehearsal.crossing(send.tensor)
    return CutTensor(
        send,
        arrays[0].dtype.name,
        arrays[0].shape,
        _zeros(arrays),
        float(np.mean([array.nbytes for array in arrays])),
        tuple(
            EncodingRow(e, rehearsal.effect({send.tensor: lossy}))
            for e, lossy in _ways(send, arrays)
        ),
    )


def _zeros(arrays: list[Array]) -> float:
    count = sum(array.size for array in arrays)
    return sum(int(np.count_nonzero(array == 0)) for array in arrays) / count if count else 0.0


def _ways(send: Send, arrays: list[Array]) -> list[tuple[EncodedSize, LossyCrossing]]:
    """Every encoding that suits; the plan's own scale for the one it uses."""
    suitable = (e for e in ENCODINGS.values() if has_pictures() or not e.is_picture)
    survey = EncodingSurvey.of(tuple(suitable))
    for array in arrays:
        survey.bound({send.tensor: array})
    for array in arrays:
        survey.encode({send.tensor: array})
    found = survey.entries().get(send.tensor, ())
    return [(entry, _lossy(send, entry.encoding, entry)) for entry in found]


def _lossy(send: Send, encoding: Encoding, entry: EncodedSize) -> LossyCrossing:
    if encoding is RAW or encoding.name != send.encoding:
        return LossyCrossing(encoding, entry.affine)
    return LossyCrossing(encoding, send.affine)
