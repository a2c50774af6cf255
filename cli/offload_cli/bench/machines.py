"""`offload bench --on`: measure every scheme of any model on two real machines."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from offload.costs.encodings import EncodingPolicy
from offload.errors import InputError
from offload.files import temporary_folder
from offload_models.image import picture_input_name
from offload_models.zoo import save
from offload_runtimes.deploy.up import UpRequest, UpResult
from offload_runtimes.deploy.up import up as measure

from offload_cli.bench.report import GOALS
from offload_cli.bench.results import MARGIN, Goal
from offload_cli.bench.subjects import find_study
from offload_cli.options import find_targets
from offload_cli.output import Output
from offload_cli.planning_options import image_input
from offload_cli.up_page import COLUMNS, rows, verdict, write_page

PREDICTION = 0.10
_PICKED = "split"


def bench_machines(
    output: Output,
    files: Sequence[Path],
    names: Sequence[str],
    image: str,
    on: str,
    devices: Path,
    folder: Path,
    calibration: Path | None,
    repeats: int,
    budget_s: float,
) -> bool:
    """Measure models on two targets; returns whether all goals are met.

    Args:
        output: gets tables and progress.
        files: models.
        names: models of the zoo.
        image: preprocessing to put into the models, as `offload split --image`; empty: none.
        on: device and server, separated by a comma.
        devices: `devices.toml`.
        folder: gets a folder of results and a page for each model.
        calibration: real inputs; None: random ones.
        repeats: runs of each scheme.
        budget_s: seconds for each scheme.

    Raises:
        InputError: `on` does not name two targets, or a step failed.
        ServerError: a target cannot be reached.
    """
    targets = [find_targets([name.strip()], devices)[0] for name in on.split(",") if name.strip()]
    if len(targets) != 2:
        raise InputError(f"--on {on!r} must name a device and a server, like --on pi,hub")
    results: list[UpResult] = []
    pages: list[str] = []
    for path, name in _models(files, names):
        tensor = (picture_input_name(path, {}) or "") if image else ""
        with image_input(path, image, {}) as (source, shapes), output.steps() as progress:
            result = measure(
                UpRequest(
                    source,
                    shapes=shapes,
                    float_input=tensor,
                    device=targets[0],
                    server=targets[1],
                    folder=folder / name,
                    policy=EncodingPolicy(calibration=calibration),
                    repeats=repeats,
                    budget_s=budget_s,
                    only_try=True,
                    every_scheme=True,
                ),
                lambda phrase, name=name: progress(f"{name}: {phrase}"),  # type: ignore[misc]
            )
        output.table(COLUMNS, rows(result), title=f"{name}: {verdict(result)}")
        results.append(result)
        pages.append(str(write_page(folder / name, name, targets, result)))
    goals = _goals(results)
    output.table(GOALS, [goal.row for goal in goals], title="goals")
    output.result(
        {"pages": pages, "goals": [dict(zip(GOALS, goal.row, strict=True)) for goal in goals]},
        "\n".join(pages),
    )
    return all(goal.met for goal in goals)


def _models(files: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield each model's file and name; a model of the zoo is removed after its turn."""
    for path in files:
        if not path.exists():
            raise InputError(f"{path} does not exist: check the path")
        yield path, path.stem
    for name in names:
        with _built(name) as path:
            yield path, name


@contextmanager
def _built(name: str) -> Iterator[Path]:
    with temporary_folder() as folder:
        path = folder / f"{name}.onnx"
        save(find_study(name).build(), path)
        yield path


def _goals(results: Sequence[UpResult]) -> list[Goal]:
    """Goals of the planner's choice, the predictions and the answers."""
    ratios, errors = [], []
    for result in results:
        exact = [s for s in result.schemes if s.is_lossless]
        pick = next(s for s in exact if _PICKED in s.label.split(" = "))
        ratios.append(pick.median_s / min(s.median_s for s in exact))
        errors += [abs(s.predicted_s / s.median_s - 1) for s in exact if s.predicted_s is not None]
    worst = max(s.difference for r in results for s in r.schemes if s.is_lossless)
    ratio, error = statistics.median(ratios), statistics.median(errors)
    return [
        Goal(
            "planner's pick / best measured, median",
            f"<= {MARGIN:g}",
            f"{ratio:.3f}",
            ratio <= MARGIN,
        ),
        Goal(
            "prediction off by, median", f"<= {PREDICTION:.0%}", f"{error:.1%}", error <= PREDICTION
        ),
        Goal("answers off by, most", "<= 0.001", f"{worst:.2g}", worst <= 1e-3),
    ]
