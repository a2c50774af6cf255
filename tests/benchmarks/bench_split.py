"""Splitting: speed against the floor and the peers, and which tools get which case right.

`make bench-split`. Every tool is told the same tensors at the cut; times are from the file to
both halves on disk, in one process, the tools taking turns.
"""

import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from offload.bundle.compare import Tolerances, difference
from offload.bundle.verify import (
    DEVICE_FILE,
    SERVER_FILE,
    crossing_tensors,
    distinct_cuts,
    parts_of_cut,
)
from offload.errors import OffloadError
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload_models.zoo import build
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.verify import opener
from onnx import TensorProto, helper

from tests.benchmarks.goals import Goal, report
from tests.benchmarks.peers import FLOOR, OURS, PEERS, Tool
from tests.edge_cases import EDGE_CASES, EdgeCase
from tests.toolkit.tensor_cuts import parts_at

REPEATS = 7
CUTS_OF_A_CASE = 8
FLOOR_GOAL = 1.5


def chain(length: int = 5000) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    ends = [value(f"v{i}", TensorProto.FLOAT, ["N", 4]) for i in (0, length)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def light_densenet() -> onnx.ModelProto:
    """As the onnx package ships it: 1,746 nodes, of which 836 make the weights."""
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    return onnx.load(folder / "light_densenet121.onnx")


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "googlenet": lambda: build("googlenet"),
    "resnet50": lambda: build("resnet50"),
    "densenet121": lambda: build("light_densenet121"),
    "densenet121, 1,746 nodes": light_densenet,
    "chain of 5,000": chain,
}


def middle(path: Path) -> str:
    """The single-tensor cut in file order nearest to half of the layers."""
    graph = read_graph(load_model(path))
    lasts = [
        max((u for n in layer.outputs for u in graph.consumers.get(n, ())), default=-1)
        for layer in graph.layers
    ]
    alone, open_until = [], -1
    for index, layer in enumerate(graph.layers[:-1]):
        if open_until <= index and len(layer.outputs) == 1:
            alone.append(index)
        open_until = max(open_until, lasts[index])
    best = min(alone, key=lambda index: abs(index - len(graph.layers) / 2))
    return graph.layers[best].outputs[0]


Times = dict[str, list[float] | str]


def timed(found: Times, tool: Tool) -> list[float]:
    """The seconds of a tool; empty if it failed."""
    taken = found[tool.name]
    return [] if isinstance(taken, str) else taken


def time_model(path: Path, folder: Path) -> Times:
    """Seconds of every tool, taking turns; a sentence for one that fails."""
    parts = parts_at(load_model(path), [middle(path)])
    found: Times = {}
    for turn in range(REPEATS + 1):
        for tool in (FLOOR, OURS, *PEERS):
            taken = found.setdefault(tool.name, [])
            if isinstance(taken, str):
                continue
            started = time.perf_counter()
            try:
                tool.split(path, parts, folder)
            except Exception as error:  # noqa: BLE001  whatever a peer raises is its failure
                found[tool.name] = type(error).__name__
                continue
            if turn:
                taken.append(time.perf_counter() - started)
    return found


def show_times(name: str, found: Times) -> None:
    floor = timed(found, FLOOR)
    for tool, taken in found.items():
        if isinstance(taken, str):
            print(f"| {name} | {tool} | {taken} | | |")
            continue
        low, mid, high = (1e3 * float(q) for q in np.quantile(taken, (0.25, 0.5, 0.75)))
        ratio = statistics.median(a / b for a, b in zip(taken, floor, strict=True))
        print(f"| {name} | {tool} | {mid:.1f} | {low:.1f}–{high:.1f} | {ratio:.2f} |")


def failure(tool: Tool, case: EdgeCase, folder: Path) -> str:
    """Empty when the tool splits a case right at all tried cuts, else what went wrong."""
    source = folder / "whole.onnx"
    onnx.save(case.model, source)
    engine = opener(EngineOptions(threads=1))
    expected = engine(source, False)(case.feeds)
    model = load_model(source)
    graph, freedom = read_graph(model), Tolerances.of(model)
    for device in distinct_cuts(graph, CUTS_OF_A_CASE):
        parts = parts_of_cut(graph, device)
        known = {name: graph.tensors[name].dtype for name in crossing_tensors(parts)}
        if not crossing_tensors(parts) or None in known.values():
            continue
        try:
            tool.split(source, {n: parts[n] for n in (DEVICE_FILE, SERVER_FILE)}, folder)
            values: dict[str, Any] = dict(case.feeds)
            for name in parts:
                values.update(engine(folder / name, False)(values))
        except OffloadError:
            return "does not load or run"
        except Exception as error:  # noqa: BLE001
            return type(error).__name__
        for name, want in expected.items():
            dtype = "float" if want.dtype == np.float32 else str(want.dtype)
            if difference(want, values[name]) > freedom.limit(dtype, False):
                return "wrong answer"
        kept = onnx.load(folder / SERVER_FILE, load_external_data=False).metadata_props
        if list(kept) != list(case.model.metadata_props):
            return "metadata lost"
    return ""


def correctness(folder: Path) -> dict[str, dict[str, str]]:
    """For each tool, the cases it fails and how."""
    found: dict[str, dict[str, str]] = {}
    for tool in (OURS, *PEERS):
        failures = {case.name: failure(tool, case, folder) for case in EDGE_CASES}
        found[tool.name] = {name: how for name, how in failures.items() if how}
    return found


def show_correctness(found: dict[str, dict[str, str]]) -> None:
    print("\n| tool | right | of | failures |\n|---|---|---|---|")
    for tool, failures in found.items():
        listed = "; ".join(f"{name} ({how})" for name, how in failures.items())
        print(f"| {tool} | {len(EDGE_CASES) - len(failures)} | {len(EDGE_CASES)} | {listed} |")


def rows(times: dict[str, Times], wrong: dict[str, dict[str, str]]) -> list[Goal]:
    found = []
    for name, taken in times.items():
        floor, own = timed(taken, FLOOR), timed(taken, OURS)
        ratio = statistics.median(a / b for a, b in zip(own, floor, strict=True))
        found.append(
            Goal(
                f"{name}: times the floor", f"<= {FLOOR_GOAL}", f"{ratio:.2f}", ratio <= FLOOR_GOAL
            )
        )
        peers = {tool.name: timed(taken, tool) for tool in PEERS if timed(taken, tool)}
        best = min(peers, key=lambda peer: statistics.median(peers[peer]))
        against = statistics.median(a / b for a, b in zip(own, peers[best], strict=True))
        found.append(
            Goal(f"{name}: times the fastest peer ({best})", "<= 1", f"{against:.2f}", against <= 1)
        )
    failed = len(wrong[OURS.name])
    found.append(Goal("edge cases failed", "0", str(failed), failed == 0))
    return found


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable()
    times = {}
    print("| model | tool | median ms | middle half | times the floor |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, make in MODELS.items():
            path = folder / "model.onnx"
            onnx.save(make(), path)
            times[model] = time_model(path, folder)
            show_times(model, times[model])
        wrong = correctness(folder)
    show_correctness(wrong)
    return report(rows(times, wrong))


if __name__ == "__main__":
    sys.exit(main())
