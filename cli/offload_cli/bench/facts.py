"""What all cells together tell: of the picks, of the predictions, and of what planning costs."""

from collections.abc import Sequence
from statistics import median

from offload.units import format_s

from offload_cli.bench.cell import Cell, Group
from offload_cli.bench.goals import picks

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
