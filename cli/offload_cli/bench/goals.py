"""What the experiments are held to, and what they came to."""

from collections.abc import Sequence
from dataclasses import dataclass

from offload.report.svg import SHORT
from offload.units import format_s

from offload_cli.bench.cell import TOLERANCE, Cell, Group

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
