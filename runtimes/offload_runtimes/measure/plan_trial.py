"""Run plans for real: write each as a bundle, run it on an emulated device and link, compare."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offload.bundle.engine_input import whole_input
from offload.bundle.write import write_bundle
from offload.costs.link import Link
from offload.graph.load import Model
from offload.graph.model import Graph
from offload.planning.plan import Plan
from offload.scheduling.timeline import Timeline

from offload_runtimes.client import OffloadSession
from offload_runtimes.emulation.pacing import Pacer
from offload_runtimes.engine import EngineOptions, load_once
from offload_runtimes.engine.values import Array
from offload_runtimes.local import open_session
from offload_runtimes.measure import Progress
from offload_runtimes.measure.accuracy import change


@dataclass(frozen=True)
class PlanTrial:
    """The measurement of one plan.

    Attributes:
        label: the plan's name for people.
        plan: the plan that ran, with its prediction.
        seconds: latency of each repeat.
        timeline: measured, of the repeat nearest to the median.
        outputs: its outputs by name.
        difference: largest difference from the whole model's outputs, relative to their range.
    """

    label: str
    plan: Plan
    seconds: tuple[float, ...]
    timeline: Timeline
    outputs: Mapping[str, Array]
    difference: float

    @property
    def latency_s(self) -> float:
        """Median latency in seconds."""
        return statistics.median(self.seconds)

    @property
    def upload_bytes(self) -> int:
        """Bytes uploaded per inference, as planned."""
        return sum(send.size_bytes or 0 for send in self.plan.uploads)


@dataclass(frozen=True)
class MachinePair:
    """The emulated machine pair that plans run on.

    Attributes:
        model: the model, loaded from a file.
        graph: its layers.
        feeds: the inputs of every run.
        link: the emulated link.
        slowdown: how many times slower the emulated device is than this machine.
        options: how onnxruntime runs on both sides.
        folder: where bundles are written.
        whole_s: seconds of the whole model on this machine, by its profile. The device is paced so
            that it takes `slowdown` times these, even if this machine is slower now; 0: the
            device is paced by what this machine does now.
    """

    model: Model
    graph: Graph
    feeds: Mapping[str, Array]
    link: Link
    slowdown: float
    options: EngineOptions
    folder: Path
    whole_s: float = 0.0


def try_plans(
    bench: MachinePair,
    plans: Mapping[str, Plan],
    repeats: int = 5,
    progress: Progress = lambda _: None,
    more: Sequence[str] = (),
) -> tuple[PlanTrial, ...]:
    """Run every plan, with repeats interleaved so that noise affects all alike.

    Args:
        bench: machine pair, model and input.
        plans: by label.
        repeats: runs of each plan after a warm-up run.
        progress: called with a phrase before each step.
        more: labels of plans that are run again after that, in this order.

    Raises:
        BundleError, InputError, ServerError: as the runtime.
    """
    engine = load_once(whole_input(bench.model), bench.options)
    names = [value.name for value in engine.outputs]
    whole = dict(zip(names, engine.run(None, bench.feeds), strict=True))
    del engine  # its memory is needed by the sessions
    sessions: dict[str, OffloadSession] = {}
    pacer = Pacer(bench.slowdown)  # one device: all plans are paced alike
    runs: dict[str, list[tuple[dict[str, Array], Timeline]]] = {label: [] for label in plans}
    try:
        for label, plan in plans.items():
            progress(f"preparing {label}")
            name = "".join(c if c.isalnum() else "-" for c in label) + ".bundle"
            bundle = write_bundle(bench.model, bench.graph, plan, bench.folder / name)
            sessions[label] = open_session(
                bundle,
                link=bench.link,
                slowdown=pacer,
                threads=bench.options.threads,
                providers=bench.options.providers,
                allow_cpu=bench.options.allow_cpu,
                optimize=bench.options.optimize,
                on_server_loss="raise",  # a run finished locally would measure something else
            )
        for label, session in sessions.items():
            progress(f"warming up {label}")
            session.run(None, bench.feeds)
        if bench.slowdown > 1:
            progress("measuring the device's parts")
            _settle(pacer, plans, sessions, bench)
        turns = [label for _ in range(repeats + 1) for label in plans]
        for number, label in enumerate((*turns, *more)):
            progress(f"running {label} ({number} of {len(turns) + len(more)})")
            outputs, timeline = sessions[label].run_timed(None, bench.feeds)
            runs[label].append((dict(zip(whole, outputs, strict=True)), timeline))
    finally:
        for session in sessions.values():
            session.close()
    return tuple(_trial(label, plan, runs[label][1:], whole) for label, plan in plans.items())


def _settle(
    pacer: Pacer,
    plans: Mapping[str, Plan],
    sessions: Mapping[str, OffloadSession],
    bench: MachinePair,
) -> None:
    """Measure the device's part of each plan in turns, and pace all runs by these times."""
    turns = [
        {label: session.rehearse(bench.feeds) for label, session in sessions.items()}
        for _ in range(Pacer.WINDOW)
    ]
    local = next((label for label, plan in plans.items() if plan.is_local), None)
    now_s = 0.0 if local is None else min(turn[local] for turn in turns)
    pacer.settle(bench.whole_s / now_s if bench.whole_s and now_s else 1.0)


def _trial(
    label: str,
    plan: Plan,
    runs: Sequence[tuple[dict[str, Array], Timeline]],
    whole: Mapping[str, Array],
) -> PlanTrial:
    seconds = tuple(timeline.makespan_s for _, timeline in runs)
    middle = statistics.median(seconds)
    _, timeline = min(runs, key=lambda run: abs(run[1].makespan_s - middle))
    outputs = runs[-1][0]
    worst = max((change(array, outputs[name])[0] for name, array in whole.items()), default=0.0)
    return PlanTrial(label, plan, seconds, timeline, outputs, worst)
