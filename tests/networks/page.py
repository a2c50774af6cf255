"""The table of `make test-models`, its goals, and the page `docs/models.md`."""

import datetime as dt
import subprocess
from collections.abc import Sequence
from pathlib import Path

from offload.units import format_bytes

from tests.benchmarks.goals import Goal
from tests.networks.networks import NETWORKS
from tests.networks.trial import Result

GOALS_S = {"estimated": 30.0, "measured": 120.0, "verify": 300.0}
FLOPS_WITHIN, FLOPS_SHARE = 0.10, 0.95
FULL_NETWORKS = 40

LIBRARIES = (
    *("torch", "torchvision", "timm", "ultralytics", "transformers", "onnxscript", "onnx"),
    *("onnxruntime", "onnxslim", "scikit-learn", "skl2onnx", "onnxmltools", "xgboost"),
    *("lightgbm", "catboost"),
)

HEAD = (
    *("network", "from", "right", ">layers", ">inspect", ">verify", ">profile"),
    *(">split, estimated", ">split, measured", ">run", ">peak memory", ">GFLOP", ">seen"),
)

INTRODUCTION = """# Networks that were tried

`make test-models FULL=1` writes this page. It takes each network through the commands as a user
runs them, and compares every answer with plain onnxruntime's. `make test-models` tries eight.

Last run: {date}; {tried} of {listed} networks have a result. Exported with {libraries}.
Exported networks have seeded random weights, files from wheels have real ones.

- *right*: `inspect`, `verify`, `profile`, `split` (estimated, measured, all on the device, all on
  the server, a forced cut) and `run` succeed. All outputs are those of onnxruntime: the same bits
  without optimisations, within the tolerance of `verify` with them.
- *run*: the slowest of six runs: both chosen plans, all on the device, all on a server in another
  process, and the forced cut, here without optimisations and on the server with them. The cut is
  at a tensor before which about half of the work is done.
- *peak memory*: resident memory of the command that took most.
- *GFLOP*: counted from the sizes that onnxruntime reports for each kernel call of one run.
  Ensembles of trees compare values and have no such count.
- *seen*: the operations that the plan by estimate assumes, as a share of that count.

Seconds include the start of the command, about a second. Measured on two shared x86 cores.
"""


def seen_right(result: Result) -> bool:
    """Whether the plan's operations are those of a run, within the goal."""
    return result.share is not None and abs(result.share - 1) <= FLOPS_WITHIN


def goals(results: Sequence[Result], wanted: int) -> list[Goal]:
    """What the run is held to."""
    right = sum(result.right for result in results)
    counted = [result for result in results if result.counted_flops]
    close = sum(seen_right(result) for result in counted)
    found = [
        Goal("networks tried", f">= {wanted}", str(len(results)), len(results) >= wanted),
        Goal("networks right", "all", f"{right} of {len(results)}", right == len(results)),
        Goal(
            "FLOPs within 10 % of a real run",
            f">= {FLOPS_SHARE:.0%}",
            f"{close} of {len(counted)}",
            close >= FLOPS_SHARE * len(counted),
        ),
    ]
    words = {"estimated": "split by estimate", "measured": "split measured", "verify": "verify"}
    for step, limit_s in GOALS_S.items():
        taken = [(r.seconds[step], r.name) for r in results if step in r.seconds]
        worst_s, name = max(taken, default=(0.0, "none"))
        shown = f"{worst_s:.1f} s ({name})"
        measure, goal = f"{words[step]}, slowest", f"<= {limit_s:.0f} s"
        found.append(Goal(measure, goal, shown, worst_s <= limit_s))
    return found


def cells(result: Result) -> tuple[str, ...]:
    """One network's row."""

    def seconds(step: str) -> str:
        return f"{result.seconds[step]:.1f} s" if step in result.seconds else ""

    runs = [taken for step, taken in result.seconds.items() if step.startswith("run ")]
    own = [peak for step, peak in result.peaks.items() if step != "onnxruntime"]
    return (
        result.name,
        result.origin,
        "yes" if result.right else f"no: {', '.join(result.faults)}",
        str(result.layers),
        *map(seconds, ("inspect", "verify", "profile", "estimated", "measured")),
        f"{max(runs):.1f} s" if runs else "",
        format_bytes(max(own)) if own else "",
        f"{result.counted_flops / 1e9:.3g}" if result.counted_flops else "",
        "" if result.share is None else f"{result.share:.1%}",
    )


def table(results: Sequence[Result]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        f"| {' | '.join(name.removeprefix('>') for name in HEAD)} |",
        f"|{'|'.join('--:' if name.startswith('>') else '---' for name in HEAD)}|",
    ]
    return lines + [f"| {' | '.join(cells(result))} |" for result in results]


def faults(results: Sequence[Result]) -> list[str]:
    """Each step that failed, with what it said."""
    return [
        f"- {result.name}, {step}: {' '.join(message.split())}"
        for result in results
        for step, message in result.faults.items()
    ]


def versions(python: Path) -> str:
    """The versions of the exporting libraries."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("==") for line in listed.stdout.split() if "==" in line)
    return ", ".join(f"{name} {found[name]}" for name in LIBRARIES if name in found)


def page(results: Sequence[Result], found: Sequence[Goal], libraries: str) -> str:
    """The page, in Markdown."""
    wrong = faults(results)
    today = dt.datetime.now(tz=dt.UTC)
    lines = [
        INTRODUCTION.format(
            date=f"{today:%Y-%m-%d}",
            tried=len(results),
            listed=len(NETWORKS),
            libraries=libraries,
        ),
        *table(results),
        "",
        "| measure | goal | measured | met |",
        "|---|---|---|---|",
        *(f"| {' | '.join(goal.row)} |" for goal in found),
        "",
    ]
    if len({result.version for result in results}) > 1:
        lines += ["The rows were not all measured with the same source of the product.", ""]
    if wrong:
        lines += ["## What failed", "", *wrong, ""]
    return "\n".join(lines)
