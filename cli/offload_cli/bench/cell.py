"""What was found: a cell is one scheme of one model on one network; a group is all schemes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from offload.errors import InputError
from offload.files import write_text
from offload.scheduling.timeline import Timeline

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
