"""Results of the benchmark, one cell per scheme, model and network; summary and goals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from offload.errors import InputError
from offload.files import write_text
from offload.records import fields_to_json, from_json, to_json
from offload.report.svg import SHORT
from offload.scheduling.timeline import Timeline
from offload.units import format_s

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Cell:
    """One scheme of one model on one network.

    Attributes:
        model, network, scheme: their names.
        runs_as: the scheme whose runs it shares because the program is the same; mostly itself.
        picked: the planner chooses it, among schemes with float input or with a camera's bytes.
        predicted_s: predicted latency.
        latencies_s: measured latencies, one per run.
        upload_bytes: bytes uploaded per inference, as planned.
        cut: tensors that are uploaded.
        energy_j: the device's energy, by the power model from the measured times.
        difference: largest difference from the whole model's outputs, relative to the largest.
        predicted: the predicted timeline.
        measured: the timeline of the run nearest to the median.
    """

    model: str
    network: str
    scheme: str
    runs_as: str
    picked: bool
    predicted_s: float
    latencies_s: tuple[float, ...]
    upload_bytes: int
    cut: tuple[str, ...]
    energy_j: float
    difference: float
    predicted: Timeline
    measured: Timeline

    @property
    def median_s(self) -> float:
        """Median of the measured latencies."""
        return median(self.latencies_s)

    @property
    def p95_s(self) -> float:
        """95th percentile of the measured latencies; with few runs, close to the largest."""
        return float(np.quantile(self.latencies_s, 0.95))

    @property
    def is_equal(self) -> bool:
        """Whether the outputs are those of the whole model."""
        return self.difference <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the fields, the median and the 95th percentile."""
        return {**fields_to_json(self), "median_s": self.median_s, "p95_s": self.p95_s}


@dataclass(frozen=True)
class Group:
    """All schemes of one model on one network.

    Attributes:
        settings: what the results depend on.
        cells: one per scheme.
        overheads: seconds of planning, by scheme.
    """

    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]
    overheads: Mapping[str, tuple[float, ...]]

    @property
    def model(self) -> str:
        """The measured model."""
        return self.cells[0].model

    @property
    def network(self) -> str:
        """The network it was measured on."""
        return self.cells[0].network

    def cell(self, scheme: str) -> Cell | None:
        """The cell of a scheme; None if the model does not have it."""
        return next((cell for cell in self.cells if cell.scheme == scheme), None)

    def save(self, path: Path) -> None:
        """Write to a file atomically."""
        write_text(path, json.dumps(to_json(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Group":
        """Read what `save` wrote.

        Raises:
            InputError: the file is damaged.
        """
        try:
            return from_json(cls, json.loads(path.read_text()))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: remove it to measure again") from error


def cut_file(folder: Path, model: str, network: str, scheme: str) -> Path:
    """Path of the picture of the chosen scheme's cut; None: it does not cut the model."""
    return folder / "cuts" / f"{model}-{network}-{scheme}.svg"


MARGIN = 1.02
OVERLAPPING = ("multi_stream", "alexnet_parallel", "randwire")
_FLOAT_RIVALS = ("local", "cloud", "partition")
_RAW_RIVALS = ("local", "cloud-raw")


@dataclass(frozen=True, slots=True)
class Goal:
    """A row of a table of goals: what was measured, the goal, the result, whether it is met."""

    measure: str
    goal: str
    measured: str
    met: bool

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of the row."""
        return self.measure, self.goal, self.measured, "yes" if self.met else "no"


@dataclass(frozen=True, slots=True)
class Pick:
    """The planner's pick for one model and network, and the best simpler scheme.

    Attributes:
        kind: the input, `fp32` or `raw`.
        picked: the scheme that the planner picks.
        best: the fastest measured of LO, CO and PO.
    """

    kind: str
    picked: Cell
    best: Cell

    @property
    def ratio(self) -> float:
        """Measured latency of the pick over that of the best."""
        return self.picked.median_s / self.best.median_s

    @property
    def is_good(self) -> bool:
        """Whether the pick takes at most 2 % longer than the best."""
        return self.ratio <= MARGIN

    @property
    def why(self) -> str:
        """The likely reason for a pick that is not good."""
        if min(self.picked.latencies_s) <= max(self.best.latencies_s) * MARGIN:
            return "the runs of both overlap: the difference is within the noise"
        if self.kind == "raw" and self.best.scheme == "local" and not self.picked.upload_bytes:
            return (
                "it stays on the device as LO does, but converts the camera's bytes into the floats"
                f" that LO gets: predicted {format_s(self.picked.predicted_s)}"
            )

        def error(cell: Cell) -> float:
            ratio = cell.median_s / cell.predicted_s if cell.predicted_s else 1.0
            return max(ratio, 1 / ratio)

        wrong = max((self.picked, self.best), key=error)
        return (
            f"{SHORT[wrong.scheme]} was predicted at {format_s(wrong.predicted_s)} and took"
            f" {format_s(wrong.median_s)}: the profile or the link is off there"
        )


def picks(groups: Sequence[Group]) -> list[Pick]:
    """Every choice of the planner that was measured."""
    choices = []
    for group in groups:
        floats = next((c for c in group.cells if c.picked and not c.scheme.endswith("raw")), None)
        for kind, picked, rivals in (
            ("fp32", floats, _FLOAT_RIVALS),
            ("raw", group.cell("auto-raw"), _RAW_RIVALS),
        ):
            cells = [cell for cell in map(group.cell, rivals) if cell]
            if picked and cells:
                choices.append(Pick(kind, picked, min(cells, key=lambda c: c.median_s)))
    return choices


def gain(
    group: Group, scheme: str, over: str = "partition", *, predicted: bool = False
) -> float | None:
    """Measured or predicted latency of another scheme over this one's; None without both."""
    slow, fast = group.cell(over), group.cell(scheme)
    if not slow or not fast:
        return None
    return slow.predicted_s / fast.predicted_s if predicted else slow.median_s / fast.median_s


def goals(groups: Sequence[Group]) -> list[Goal]:
    """The goals for what was measured, and whether each is met."""
    choices = picks(groups)
    good = sum(pick.is_good for pick in choices)
    cells = [cell for group in groups for cell in group.cells]
    equal = sum(cell.is_equal for cell in cells)
    worst = max((cell.difference for cell in cells), default=0.0)
    return [
        Goal(
            "the planner's pick, against the best measured of LO, CO, PO",
            f"within 2 % in all {len(choices)}",
            f"{good} of {len(choices)}",
            good == len(choices),
        ),
        *(row for model in OVERLAPPING for row in _overlap_goals(groups, model)),
        Goal(
            "outputs, against the whole model's",
            f"within {TOLERANCE:g} in all {len(cells)} cells",
            f"{equal} of {len(cells)}, {worst:.1e} at most",
            equal == len(cells),
        ),
    ]


def _overlap_goals(groups: Sequence[Group], model: str) -> list[Goal]:
    """OPSS against PO at the same cut, on the network where it gains most."""

    def most(kind: str) -> tuple[float, str]:
        gains = [
            (measured, group.network, gain(group, "opss", predicted=True) or 0.0)
            for group in groups
            if group.model == model + kind and (measured := gain(group, "opss"))
        ]
        best, network, predicted = max(gains, default=(0.0, "", 0.0))
        return best, f"{best:.2f}x on {network}, {predicted:.2f}x predicted"

    (free, free_text), (private, private_text) = most(""), most("_private")
    inside, inside_text = most("_inside")
    goal = f"> {MARGIN}x on a network"
    rows = []
    if free or private:
        text = free_text
        if private > free:
            otherwise = f"; else {free_text}" if free else ""
            text = f"{private_text}, the input kept on the device{otherwise}"
        best = max(free, private)
        rows.append(Goal(f"OPSS over PO, {model}", goal, text, best > MARGIN))
    if inside:
        measure = f"OPSS over PO, {model}, cut forced inside a stage"
        rows.append(Goal(measure, goal, inside_text, inside > MARGIN))
    return rows


PLANNING = ("paper", "opss", "joint")


def facts(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Statements about all cells, and their figures."""
    choices = picks(groups)
    other = [1 / pick.ratio for pick in choices if pick.picked.runs_as != pick.best.runs_as]
    own = [cell for group in groups for cell in group.cells if cell.runs_as == cell.scheme]
    gains = sum(factor > MARGIN for factor in other)
    factors = (
        f"{len(other)}: {min(other):.2f} to {max(other):.2f}, {gains} of them more than {MARGIN}"
        if other
        else "0"
    )
    same = str(len(choices) - len(other))
    return [
        ("picks that run the same program as the best of LO, CO and PO", same),
        ("other picks, and their gain over that best", factors),
        ("prediction error, median, without LO", _prediction_error(own, local=False)),
        ("prediction error, median, LO (the device is paced to it)", _prediction_error(own, True)),
    ]


def _prediction_error(cells: Sequence[Cell], local: bool) -> str:
    errors = [
        abs(cell.median_s / cell.predicted_s - 1)
        for cell in cells
        if cell.predicted_s and (cell.scheme == "local") is local
    ]
    return f"{100 * median(errors):.1f} % of {len(errors)}" if errors else ""


def planning(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """For each model: the least and the most seconds of planning, by scheme."""
    rows = []
    for model in dict.fromkeys(group.model for group in groups):
        row = [model]
        for key in PLANNING:
            seconds = [s for g in groups if g.model == model for s in g.overheads.get(key, ())]
            span = f"{format_s(min(seconds))} to {format_s(max(seconds))}" if seconds else ""
            row.append(span)
        rows.append(tuple(row))
    return rows
