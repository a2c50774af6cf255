"""Planning time and gain of each scheme on zoo models and random graphs.

Run as `make bench-plan`. Layer times are estimated from FLOPs (device 8 GFLOP/s, server 20 times
that), so the figures do not depend on this machine; only the planning seconds do.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from offload.costs.link import parse_link, parse_links
from offload.graph.model import Graph, Layer, Tensor
from offload.planning.cut_costs import Costs
from offload.planning.planner import compare, make_plan
from offload.planning.problem import PlanningProblem
from offload.planning.scheme import Scheme
from offload.planning.sweep import SweepPoint, sweep
from offload.units import format_s
from offload_models.zoo import build, save
from offload_runtimes.measure.split import PlanningInputs, SplitRequest, prepare

from tests.benchmarks.goals import Goal, report

MODELS = (
    "densenet121",
    "randwire",
    "multi_stream",
    "alexnet_parallel",
    "googlenet",
    "mobilenet_v2",
    "squeezenet",
)
DEVICE, SERVER = 8e9, 1.6e11
LINKS = parse_links("1..100 Mbit/s", parse_link("wifi"), 9)
SLOWDOWNS = (0.5, 1.0, 4.0)


def prepared(name: str, folder: Path) -> PlanningInputs:
    path = folder / f"{name}.onnx"
    save(build(name), path)
    return prepare(SplitRequest(path, LINKS[0], device=DEVICE, server=SERVER))


def planning_s(inputs: PlanningInputs) -> list[float]:
    """Seconds to plan for each link, from a freshly loaded graph without caches."""
    seconds = []
    for link, _ in itertools.product(LINKS, range(3)):
        fresh = replace(inputs, graph=replace(inputs.graph))
        start = time.perf_counter()
        make_plan(fresh.problem(link))
        seconds.append(time.perf_counter() - start)
    return seconds


def right(cell: SweepPoint, problem: PlanningProblem) -> bool:
    """Whether the chosen plan is no slower than LO, CO and PO, and the sentence names it."""
    simple = [cell.latency_s(s) for s in ("local", "cloud", "partition")]
    reason = make_plan(problem).reason
    named = reason.partition(" wins ")[0].partition(" takes ")[0]
    no_slower = cell.chosen.latency_s <= min(s for s in simple if s is not None) * (1 + 1e-9)
    return no_slower and f"({cell.winner})" in named


def random_problem(seed: int, layers: int = 24) -> PlanningProblem:
    """A random graph of parallel branches, with times for which all resources compete."""
    dice = np.random.default_rng(seed)
    needs: list[list[int]] = [[] for _ in range(layers)]
    for after in range(1, layers):
        for before in range(max(0, after - 6), after):
            if dice.random() < 1.3 / min(after, 6):
                needs[after].append(before)
    read = {before for row in needs for before in row}
    sinks = [layer for layer in range(layers - 1) if layer not in read]
    needs[-1] = sorted({*needs[-1], *sinks})
    all_layers = tuple(
        Layer(f"l{i}", "Op", (i,), tuple(f"t{j}" for j in needs[i]) or ("x",), (f"t{i}",))
        for i in range(layers)
    )
    names = ("x", *(f"t{i}" for i in range(layers)))
    tensors = {name: Tensor(name, "float", (1, 8), 32) for name in names}
    graph = Graph("random", "0" * 64, ("x",), (f"t{layers - 1}",), all_layers, tensors)
    device_s = dice.lognormal(0, 0.8, layers)
    upload_s = dice.lognormal(dice.uniform(-1, 2), 0.8, layers + 1)
    upload_s[0] *= 4
    return PlanningProblem(
        graph,
        Costs(
            tuple(device_s.tolist()),
            tuple((device_s / dice.choice((5, 10, 20, 50))).tolist()),
            dict(zip(names, upload_s.tolist(), strict=True)),
            {f"t{layers - 1}": 0.01},
            dict.fromkeys(names, 32),
        ),
    )


def gains(latencies: Sequence[dict[str, float]]) -> Iterator[str]:
    """Mean and largest gain of each scheme over the better of all local and all remote."""
    for scheme in ("neurosurgeon", "partition", "opss", "joint"):
        factors = [min(row["local"], row["cloud"]) / row[scheme] for row in latencies]
        yield f"{statistics.mean(factors):5.3f}x {max(factors):5.2f}x"


def line(name: str, latencies: Sequence[dict[str, float]]) -> None:
    print(f"{name:18} {len(latencies):5} " + "   ".join(gains(latencies)), flush=True)


def figures(cell: SweepPoint) -> dict[str, float]:
    return {a.scheme: a.latency_s for a in cell.alternatives}


def main() -> int:
    goals, wrong, cells = [], 0, 0
    print("gain over the better of local and cloud: mean, largest")
    heads = ("neurosurgeon", "min-cut", "+ best order", "joint")
    print(f"{'':18} cells " + "   ".join(f"{head:13}" for head in heads))
    zoo: list[dict[str, float]] = []
    speed = {}
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as folder:
        for name in MODELS:
            inputs = prepared(name, Path(folder))
            speed[name] = planning_s(inputs)
            rows = []
            for slowdown, link in itertools.product(SLOWDOWNS, LINKS):
                (cell,) = sweep(inputs.problem, [link], [slowdown])
                wrong += not right(cell, inputs.problem(link, slowdown))
                rows.append(figures(cell))
            cells += len(rows)
            zoo += rows
            line(name, rows)
    line("all of the zoo", zoo)
    random = [
        {c.scheme.value: c.latency_s for c in compare(random_problem(seed))} for seed in range(100)
    ]
    line("random graphs", random)
    best = sum(row[Scheme.JOINT] <= min(row.values()) * (1 + 1e-9) for row in random)
    print("\nplanning seconds: median, largest of", len(speed[MODELS[0]]))
    for name, seconds in speed.items():
        print(f"{name:18} {format_s(statistics.median(seconds)):>8} {format_s(max(seconds)):>8}")
    dense_s = statistics.median(speed["densenet121"])
    goals.append(
        Goal("planning DenseNet-121, median", "< 100 ms", format_s(dense_s), dense_s < 0.1)
    )
    goals.append(
        Goal(
            "cells where the plan is <= min(LO, CO, PO) and named so",
            f"all of {cells}",
            str(cells - wrong),
            wrong == 0 and cells >= 50,
        )
    )
    goals.append(Goal("random graphs where joint is best", "all of 100", str(best), best == 100))
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
