"""Report the size of every tensor at a bundle's cut under every encoding, and its effect."""

from dataclasses import dataclass

import numpy as np
from offload.bundle.bundle import Bundle
from offload.bundle.engine_input import exposed_inputs
from offload.costs.encoding_table import EncodedSize
from offload.costs.encodings import ENCODINGS, RAW
from offload.planning.plan import Send

from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.accuracy import AccuracyTrial, Effect, LossyCrossing
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.encoding_sizes import EncodingSurvey
from offload_runtimes.protocol.codecs import has_pictures


@dataclass(frozen=True, slots=True)
class EncodingRow:
    """One encoding of one tensor: its sizes and seconds, and its effect alone on the outputs."""

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
        options: every encoding that suits it, raw first.
    """

    send: Send
    dtype: str
    shape: tuple[int, ...]
    zeros: float
    raw_bytes: float
    options: tuple[EncodingRow, ...]

    @property
    def used(self) -> EncodingRow | None:
        """The encoding that the plan uses; None where it does not suit these inputs."""
        rows = (row for row in self.options if row.measured.encoding.name == self.send.encoding)
        return next(rows, None)

    @property
    def prediction_error(self) -> float | None:
        """Relative error of the plan's predicted size on these inputs."""
        if self.used is None or not self.send.size_bytes or not self.used.measured.mean_bytes:
            return None
        return self.send.size_bytes / self.used.measured.mean_bytes - 1


@dataclass(frozen=True)
class EncodeReport:
    """The encodings at a bundle's cut.

    Attributes:
        tensors: those at the cut, in order of sending.
        effect: of the plan as a whole.
        unproven: why the inputs don't show the effect of an encoding; None: they do.
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
    """Run both sides on the inputs with the cut's tensors in every encoding, one at a time.

    Seconds are this machine's. O(inputs x tensors x encodings) runs of the server's part.

    Args:
        bundle: both sides' files must be there.
        calibration: inputs.
        options: how onnxruntime runs.
        progress: called with a phrase before each step.

    Raises:
        InputError: the model refuses an input.
    """
    progress("running the device's segments")
    trial = AccuracyTrial(bundle.plan, exposed_inputs(bundle), calibration, options)
    tensors = []
    for send in bundle.plan.uploads:
        progress(f"encoding {send.tensor}")
        tensors.append(_tensor(send, trial))
    planned = trial.planned()
    return EncodeReport(tuple(tensors), trial.effect(planned), trial.unproven(planned))


def _tensor(send: Send, trial: AccuracyTrial) -> CutTensor:
    """The report of one tensor; the plan's own scale for the encoding that it uses."""
    arrays = trial.crossing(send.tensor)
    encodings = [e for e in ENCODINGS.values() if has_pictures() or not e.is_picture]
    survey = EncodingSurvey.of(encodings)
    for array in arrays:
        survey.bound({send.tensor: array})
    for array in arrays:
        survey.encode({send.tensor: array})
    options = []
    for entry in survey.entries().get(send.tensor, ()):
        is_used = entry.encoding is not RAW and entry.encoding.name == send.encoding
        lossy = LossyCrossing(entry.encoding, send.affine if is_used else entry.affine)
        options.append(EncodingRow(entry, trial.effect({send.tensor: lossy})))
    count = sum(array.size for array in arrays)
    zeros = sum(int(np.count_nonzero(array == 0)) for array in arrays)
    return CutTensor(
        send,
        arrays[0].dtype.name,
        arrays[0].shape,
        zeros / count if count else 0.0,
        float(np.mean([array.nbytes for array in arrays])),
        tuple(options),
    )
