"""Results of the experiments: one cell a scheme, model and network; their summary and goals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from offload.errors import InputError
from offload.files import write_text
from offload.report.svg import SHORT
from offload.scheduling.timeline import Timeline
from offload.units import format_s

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Cell:
    """One scheme of one model on one network.

    Attributes:
        model, network, scheme: which.
        runs_as: the scheme that was run for it, the same program; itself mostly.
        picked: the planner would choose it, among float inputs or among a camera's bytes.
        predicted_s: latency as planned.
        latencies_s: measured, one a run.
        upload_bytes: sent up per inference, as planned.
        cut: tensors that go up.
        energy_j: the device's, by the power model from the measured times.
        difference: largest difference from the whole model's outputs, relative to the largest.
        predicted: the timeline as planned.
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
        """Their 95th percentile; with few runs, close to the largest."""
        return float(np.quantile(self.latencies_s, 0.95))

    @property
    def is_equal(self) -> bool:
        """Whether the outputs are the whole model's."""
        return self.difference <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` reads it."""
        return {
            **asdict(self),
            "median_s": self.median_s,
            "p95_s": self.p95_s,
            "predicted": self.predicted.to_json(),
            "measured": self.measured.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cell":
        """Read what `to_json` wrote."""
        kept = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(
            **{
                **kept,
                "latencies_s": tuple(value["latencies_s"]),
                "cut": tuple(value["cut"]),
                "predicted": Timeline.from_json(value["predicted"]),
                "measured": Timeline.from_json(value["measured"]),
            }
        )


@dataclass(frozen=True)
class Group:
    """All schemes of one model on one network.

    Attributes:
        settings: what they were measured with; other settings make other groups.
        cells: one a scheme.
        overheads: seconds of planning, by scheme.
    """

    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]
    overheads: Mapping[str, Sequence[float]]

    @property
    def model(self) -> str:
        """The model measured."""
        return self.cells[0].model

    @property
    def network(self) -> str:
        """The network it was measured on."""
        return self.cells[0].network

    def cell(self, scheme: str) -> Cell | None:
        """The cell of a scheme, if the model has it."""
        return next((cell for cell in self.cells if cell.scheme == scheme), None)

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        value = {
            "settings": dict(self.settings),
            "cells": [cell.to_json() for cell in self.cells],
            "overheads": {key: list(found) for key, found in self.overheads.items()},
        }
        write_text(path, json.dumps(value, indent=1))

    @classmethod
    def load(cls, path: Path) -> "Group":
        """Read what `save` wrote.

        Raises:
            InputError: the file is damaged.
        """
        try:
            value = json.loads(path.read_text())
            cells = tuple(Cell.from_json(cell) for cell in value["cells"])
            return cls(value["settings"], cells, value["overheads"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: remove it, and it is measured again") from error


MARGIN = 1.02
OVERLAPPING = ("multi_stream", "alexnet_parallel", "randwire")
_FLOAT_RIVALS = ("local", "cloud", "partition")
_RAW_RIVALS = ("local", "cloud-raw")


@dataclass(frozen=True, slots=True)
class Goal:
    """One row of the table: what, how much is wanted, what was found, whether that is enough."""

    measure: str
    goal: str
    measured: str
    met: bool

    @property
    def row(self) -> tuple[str, ...]:
        """The row as shown."""
        return self.measure, self.goal, self.measured, "yes" if self.met else "no"


@dataclass(frozen=True, slots=True)
class Pick:
    """What the planner picked in one cell, and the best of the schemes that it must not lose to.

    Attributes:
        kind: of input: `fp32` or `raw`.
        picked: what the planner picks.
        best: the fastest measured of LO, CO and PO.
    """

    kind: str
    picked: Cell
    best: Cell

    @property
    def ratio(self) -> float:
        """How much longer the pick takes, as measured."""
        return self.picked.median_s / self.best.median_s

    @property
    def is_good(self) -> bool:
        """Whether it is as good, or next to."""
        return self.ratio <= MARGIN

    @property
    def why(self) -> str:
        """Why it is not, as far as the figures tell."""
        low, high = min(self.picked.latencies_s), max(self.best.latencies_s)
        if low <= high * MARGIN:
            return "the runs of both overlap: the difference is within the noise"
        if self.kind == "raw" and self.best.scheme == "local" and not self.picked.upload_bytes:
            return (
                "it stays on the device, too, where it turns the camera's bytes into the floats"
                f" that LO is given: predicted {format_s(self.picked.predicted_s)}"
            )
        wrong = max((self.picked, self.best), key=_error)
        return (
            f"{SHORT[wrong.scheme]} was predicted at {format_s(wrong.predicted_s)} and took"
            f" {format_s(wrong.median_s)}: the layer table or the link is off there"
        )


def _error(cell: Cell) -> float:
    ratio = cell.median_s / cell.predicted_s if cell.predicted_s else 1.0
    return max(ratio, 1 / ratio)


def picks(groups: Sequence[Group]) -> list[Pick]:
    """Every choice of the planner that was measured."""
    found = []
    for group in groups:
        floats = next((c for c in group.cells if c.picked and not c.scheme.endswith("raw")), None)
        for kind, picked, rivals in (
            ("fp32", floats, _FLOAT_RIVALS),
            ("raw", group.cell("auto-raw"), _RAW_RIVALS),
        ):
            cells = [cell for cell in map(group.cell, rivals) if cell]
            if picked and cells:
                found.append(Pick(kind, picked, min(cells, key=lambda c: c.median_s)))
    return found


def gain(group: Group, scheme: str, over: str = "partition") -> float | None:
    """How many times faster a scheme was measured than another; None without both."""
    slow, fast = group.cell(over), group.cell(scheme)
    return slow.median_s / fast.median_s if slow and fast else None


def predicted_gain(group: Group, scheme: str, over: str = "partition") -> float | None:
    """The same as planned: what a quiet machine would show."""
    slow, fast = group.cell(over), group.cell(scheme)
    return slow.predicted_s / fast.predicted_s if slow and fast else None


def goals(groups: Sequence[Group]) -> list[Goal]:
    """The table, for what was measured."""
    made = picks(groups)
    good = sum(pick.is_good for pick in made)
    cells = [cell for group in groups for cell in group.cells]
    equal = sum(cell.is_equal for cell in cells)
    worst = max((cell.difference for cell in cells), default=0.0)
    rows = [
        Goal(
            "the planner's pick, against the best measured of LO, CO, PO",
            f"within 2 % in all {len(made)}",
            f"{good} of {len(made)}",
            good == len(made),
        )
    ]
    rows += [row for model in OVERLAPPING for row in _overlap(groups, model)]
    rows.append(
        Goal(
            "outputs, against the whole model's",
            f"within {TOLERANCE:g} in all {len(cells)} cells",
            f"{equal} of {len(cells)}, {worst:.1e} at most",
            equal == len(cells),
        )
    )
    return rows


def _overlap(groups: Sequence[Group], model: str) -> list[Goal]:
    """OPSS against PO at the same cut, on the network where it helps most."""
    free, private, inside = (
        [group for group in groups if group.model == f"{model}{kind}" and gain(group, "opss")]
        for kind in ("", "_private", "_inside")
    )
    rows = []
    if free or private:
        best, said = _most(free)
        kept, said_kept = _most(private)
        if kept > best:
            said = f"{said_kept}, the input kept on the device" + (f"; else {said}" if free else "")
        rows.append((f"OPSS over PO, {model}", said, max(best, kept)))
    if inside:
        most, said = _most(inside)
        rows.append((f"OPSS over PO, {model}, cut forced inside a stage", said, most))
    wanted = f"> {MARGIN}x on a network"
    return [Goal(what, wanted, said, found > MARGIN) for what, said, found in rows]


def _most(groups: Sequence[Group]) -> tuple[float, str]:
    """The largest factor of OPSS over PO, and where it was; 0 without any."""
    found = [(gain(g, "opss") or 0.0, g.network, predicted_gain(g, "opss") or 0.0) for g in groups]
    best, network, planned = max(found, default=(0.0, "", 0.0))
    return best, f"{best:.2f}x on {network}, {planned:.2f}x predicted"


PLANNING = ("paper", "opss", "joint")


def facts(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Statements and their figures."""
    made = picks(groups)
    other = [1 / pick.ratio for pick in made if pick.picked.runs_as != pick.best.runs_as]
    own = [cell for group in groups for cell in group.cells if cell.runs_as == cell.scheme]
    local = [cell for cell in own if cell.scheme == "local"]
    rest = [cell for cell in own if cell.scheme != "local"]
    return [
        ("picks that are the best of LO, CO and PO, the same program", str(len(made) - len(other))),
        ("other picks, and how many times faster than that best they are", _range(other)),
        ("predictions off by, median, LO left out", _off(rest)),
        ("predictions off by, median, LO, to which the device is paced", _off(local)),
    ]


def planning(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """For each model: the least and the most seconds that planning took, by scheme."""
    models = dict.fromkeys(group.model for group in groups)
    return [(model, *(_planned(groups, model, key) for key in PLANNING)) for model in models]


def _planned(groups: Sequence[Group], model: str, scheme: str) -> str:
    found = [s for g in groups if g.model == model for s in g.overheads.get(scheme, ())]
    return f"{format_s(min(found))} to {format_s(max(found))}" if found else ""


def _range(factors: Sequence[float]) -> str:
    if not factors:
        return "0"
    gains = sum(factor > 1.02 for factor in factors)
    return (
        f"{len(factors)}: {min(factors):.2f} to {max(factors):.2f}, {gains} of them more than 1.02"
    )


def _off(cells: Sequence[Cell]) -> str:
    found = [abs(cell.median_s / cell.predicted_s - 1) for cell in cells if cell.predicted_s]
    return f"{100 * median(found):.1f} % of {len(found)}" if found else ""
