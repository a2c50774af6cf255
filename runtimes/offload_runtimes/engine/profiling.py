"""Profile a model with onnxruntime: seconds of each kernel, types of tensors, the fused graph."""

import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort
from offload.bundle.bundle import ModelValue
from offload.errors import InputError
from offload.files import temporary_folder

from offload_runtimes.engine.engine import load_once, open_engine
from offload_runtimes.engine.options import (
    GPU_PROVIDERS,
    EngineOptions,
    resolve_providers,
    session_options,
    short_name,
)
from offload_runtimes.engine.values import Array

_KERNEL = "_kernel_time"
_RUN = "model_run"
_FOLDED_BYTES = 1 << 20
_INPUT_ERROR = f"{InputError.__module__}.{InputError.__name__}: "  # before its message
_WAITING = """
import json, pathlib, pickle, sys
from offload_runtimes.engine import profiling
nodes = profiling._timed_nodes(*pickle.load(sys.stdin.buffer))
pathlib.Path(sys.argv[1]).write_text(json.dumps(nodes))
"""


def profile_nodes(
    model: str | Path | bytes,
    feeds: Mapping[str, Array],
    options: EngineOptions | None = None,
    *,
    runs: int = 10,
    warm_runs: int = 3,
    limit_s: float = 5.0,
) -> dict[str, float]:
    """Seconds of every kernel by its node's name, from ORT's profiler, in order of execution.

    Names are those of the optimised graph (`optimize_to` writes it). A kernel's seconds are the
    median over runs; its calls within one run (loop bodies) are added up.

    The profiler itself costs time (small kernels look slower than they are), so the sum is more
    than the time of a run without it: calibrate against one. It writes an event for each kernel of
    each step of a loop and stops at a million events: do not give it long loops.

    Args:
        model: the model.
        feeds: an array for every input.
        options: how onnxruntime runs it.
        runs: runs of each median.
        warm_runs: runs before those.
        limit_s: seconds after which no run starts, except for the first two.

    On a GPU, kernels are started without waiting for each other; they are timed in a separate
    process that waits for each.

    Raises:
        InputError: the model is refused or the feeds do not fit.
    """
    options = options or EngineOptions()
    providers = resolve_providers(options.providers, options.allow_cpu)
    timed = _timed_nodes_waiting if providers[0] in GPU_PROVIDERS else _timed_nodes
    return timed(model, feeds, options, runs, warm_runs, limit_s)


def _timed_nodes(
    model: str | Path | bytes,
    feeds: Mapping[str, Array],
    options: EngineOptions,
    runs: int,
    warm_runs: int,
    limit_s: float,
) -> dict[str, float]:
    with _profiled(model, feeds, options, warm_runs + runs, limit_s) as (events, done):
        run: dict[str, float] = defaultdict(float)
        by_run: list[dict[str, float]] = []
        for event in events:  # a run ends with `model_run`
            name = event.get("name", "")
            if name.endswith(_KERNEL):
                run[name.removesuffix(_KERNEL)] += event["dur"] * 1e-6
            elif name == _RUN:
                by_run.append(run)
                run = defaultdict(float)
    timed = by_run[min(warm_runs, done // 2) :]
    names = dict.fromkeys(name for run in timed for name in run)
    return {name: statistics.median(run.get(name, 0.0) for run in timed) for name in names}


def _timed_nodes_waiting(model: str | Path | bytes, *arguments: Any) -> dict[str, float]:
    """As `_timed_nodes`, in a process where CUDA waits for every kernel that it starts.

    CUDA reads that setting once, when a process first uses it.
    """
    with temporary_folder() as folder:
        path = folder / "nodes"
        done = subprocess.run(
            [sys.executable, "-c", _WAITING, str(path)],
            input=pickle.dumps((model, *arguments)),
            env={**os.environ, "CUDA_LAUNCH_BLOCKING": "1"},
            capture_output=True,
            check=False,
        )
        if done.returncode or not path.is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            why = lines[-1].removeprefix(_INPUT_ERROR) if lines else f"exit code {done.returncode}"
            raise InputError(f"the kernels could not be timed: {why}")
        seconds: dict[str, float] = json.loads(path.read_text())
        return seconds


def kernel_providers(
    model: str | Path | bytes, feeds: Mapping[str, Array], options: EngineOptions
) -> frozenset[str]:
    """Short names of the providers that ran at least one kernel, by ORT's own profiler.

    A session lists the providers that it may use; only a run shows which it does use.

    Raises:
        InputError: the model is refused or the feeds do not fit.
    """
    with _profiled(model, feeds, options, runs=1, limit_s=0.0) as (events, _):
        providers = {event.get("args", {}).get("provider", "") for event in events}
    return frozenset(short_name(name) for name in providers if name)


@contextmanager
def _profiled(
    model: str | Path | bytes,
    feeds: Mapping[str, Array],
    options: EngineOptions,
    runs: int,
    limit_s: float,
) -> Iterator[tuple[Iterator[dict[str, Any]], int]]:
    """The events that ORT's profiler records in some runs, and the number of runs."""
    settings = session_options(options)
    settings.enable_profiling = True
    with temporary_folder() as folder:
        settings.profile_file_prefix = os.path.join(folder, "ort")  # noqa: PTH118  ORT wants str
        engine = open_engine(model, settings, options)
        until_s = time.monotonic() + limit_s
        done = 0
        while done < runs and (done < 2 or time.monotonic() < until_s):
            engine.run(None, feeds)
            done += 1
        yield _events(engine.end_profiling()), done


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The kernels and runs of ORT's profile, which has one event in each line.

    The file is read line by line: it may be larger than memory.
    """
    with path.open(errors="replace") as lines:
        for line in lines:
            if _KERNEL in line or _RUN in line:
                try:
                    yield json.loads(line.strip().rstrip(","))
                except ValueError:
                    raise InputError(f"onnxruntime's profile {path} is cut short") from None


def optimize_to(
    model: str | Path | bytes,
    target: str | Path,
    options: EngineOptions | None = None,
    *,
    fold_large: bool = True,
) -> None:
    """Write the graph as ORT has it after its EXTENDED optimisations.

    A model may be cut at the tensors that still exist there without breaking a fused kernel.
    Which nodes are fused depends on the execution provider: another provider may refuse the graph.
    Weights of a file are written to a file next to the target. Weights that bytes refer to stay
    where they are and are not read, except for those that ORT changes; load such a target as
    bytes, too.

    Args:
        model: the model.
        target: the file to write; there may be a `.weights` file next to it.
        options: the execution providers; by default the CPU.
        fold_large: whether to fold constants of more than 1 MB, which takes memory for them.

    Raises:
        InputError: onnxruntime refuses the model.
    """
    options = options or EngineOptions()
    settings = session_options(options)
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = os.fspath(target)
    settings.add_session_config_entry("session.disable_prepacking", "1")
    if not fold_large:
        settings.add_session_config_entry(
            "optimization.constant_folding_max_output_size_in_bytes", str(_FOLDED_BYTES)
        )
    if not isinstance(model, bytes):
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name",
            Path(target).with_suffix(".weights").name,
        )
    open_engine(model, settings, options)
    if not Path(target).is_file():
        raise InputError(f"onnxruntime could not write {target}: choose another folder")


def tensor_types(model: str | Path | bytes) -> dict[str, ModelValue]:
    """Type and shape of every input and output, as ORT infers them, by name.

    A tensor inside the graph is included when the model lists it as an output, for which its
    name alone is enough.

    Raises:
        InputError: onnxruntime refuses the model.
    """
    engine = load_once(model, EngineOptions(optimize=False))
    return {value.name: value for value in (*engine.inputs, *engine.outputs)}
