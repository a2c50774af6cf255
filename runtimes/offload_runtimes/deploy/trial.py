"""Run several bundles of a model in turns on a device and a server, and compare their answers."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.costs.encodings import EncodingPolicy
from offload.costs.link import Link
from offload.errors import InputError
from offload.planning.plan import Side
from offload.planning.problem import Constraints, Objective
from offload.scheduling.timeline import Lane, Timeline
from offload.units import format_s

from offload_runtimes.address import parse_address
from offload_runtimes.deploy.measuring import MeetingPoint
from offload_runtimes.deploy.scheme_bundles import SPLIT, SchemeBundle
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.target_machine import MeasuredInference, TargetMachine

LEAST_RUNS = 5
_TIE = 0.03  # of the measured cost, within which the simpler scheme is chosen
_MOST_S = 60.0  # for all schemes
ALLOWED_DIFFERENCE = 1e-3
"""Largest difference between a lossless scheme and the whole model, as for a release's proof."""
# The device's own kernels may differ from this machine's by more than that.
_OWN_TIMES = 4.0


@dataclass(frozen=True)
class TrialInputs:
    """Inputs to run on.

    Attributes:
        feeds: used one after the other.
        expected: the whole model's outputs on each, by name.
        are_random: whether they are made up.
    """

    feeds: Sequence[Mapping[str, Any]]
    expected: Sequence[Mapping[str, Any]]
    are_random: bool = False


@dataclass(frozen=True)
class SchemeResult:
    """One scheme, predicted and measured.

    Attributes:
        label: its name for people.
        scheme: `local`, `cloud` or the planner's scheme.
        predicted_s: predicted latency; None: not predicted.
        latencies_s: measured, one per run.
        period_s: measured seconds per frame of a stream; None: not measured.
        difference: largest difference from the whole model's outputs, relative to their largest
            value.
        same_answers: number of inputs on which all outputs that are class scores have the same
            largest class; None: no output is.
        inputs: number of inputs.
        is_lossless: whether all encodings are.
        upload_bytes: planned, per inference.
        cut: names of the tensors that are uploaded.
        encodings: of these tensors, in the same order.
        device_layers: number of layers on the device.
        memory_bytes: predicted memory of the device's process.
        predicted: timeline; None: not predicted.
        measured: timeline of the run nearest to the median.
    """

    label: str
    scheme: str
    predicted_s: float | None
    latencies_s: tuple[float, ...]
    period_s: float | None
    difference: float
    same_answers: int | None
    inputs: int
    is_lossless: bool
    upload_bytes: int
    cut: tuple[str, ...]
    encodings: tuple[str, ...]
    device_layers: int
    memory_bytes: int | None
    predicted: Timeline | None
    measured: Timeline

    @property
    def labels(self) -> list[str]:
        """The labels of all schemes that have this program."""
        return self.label.split(" = ")

    @property
    def median_s(self) -> float:
        """Median of the measured latencies."""
        return statistics.median(self.latencies_s)


@dataclass(frozen=True)
class Pair:
    """A device and a server that can be measured.

    Attributes:
        device: the device.
        server: the server.
        meeting: where the server listens and where the device reaches it.
        device_options: how onnxruntime runs on the device.
        server_options: how onnxruntime runs on the server.
        device_files: authority, certificate and key of the device; empty: plaintext.
        server_files: the same of the server.
    """

    device: TargetMachine
    server: TargetMachine
    meeting: MeetingPoint
    device_options: EngineOptions
    server_options: EngineOptions
    device_files: Sequence[Path] = ()
    server_files: Sequence[Path] = ()


def run_in_turns(
    pair: Pair,
    schemes: Sequence[SchemeBundle],
    link: Link,
    inputs: TrialInputs,
    *,
    repeats: int = 20,
    budget_s: float = 20.0,
    streams: bool = False,
    progress: Progress = lambda _: None,
) -> tuple[SchemeResult, ...]:
    """Measure schemes on the real machines, in turns, so that a noisy moment affects all of them.

    Args:
        pair: the machines.
        schemes: what to run; those that differ in their programs.
        link: the link between them, for the predictions.
        inputs: what to run them on.
        repeats: runs of each scheme, after one to warm up where there are more than five.
        budget_s: seconds for each scheme, and at most a minute for all, after which no round is
            begun; at least five are.
        streams: also measure the seconds per frame of a stream.
        progress: called with a phrase before each step.

    Raises:
        InputError: a machine refuses a bundle.
        ServerError: the device does not reach the server, or a machine is lost.
    """
    try:
        sessions = _open(pair, schemes, progress)
        stored = [pair.device.store(sample) for sample in inputs.feeds]
        wanted = [pair.device.store(outputs) for outputs in inputs.expected]
        runs: dict[str, list[MeasuredInference]] = {scheme.label: [] for scheme in schemes}
        least = min(LEAST_RUNS, repeats)
        began_s = time.monotonic()
        for number in range(repeats + 1):
            progress(f"running {len(schemes)} schemes in turns, run {number + 1} of {repeats + 1}")
            which = number % len(stored)
            for label in sessions:
                runs[label].append(sessions[label].time(stored[which], wanted[which]))
            is_over = time.monotonic() - began_s > min(budget_s * len(schemes), _MOST_S)
            if number + 1 >= least and is_over:
                break
        own = max(
            (run.difference for r in schemes if r.is_local for run in runs[r.label]),
            default=0.0,
        )
        results = []
        for scheme in schemes:
            period_s = None
            if streams:
                progress(f"streaming frames, {scheme.label}")
                frames = max(LEAST_RUNS, min(repeats, 50))
                period_s = sessions[scheme.label].period_s(stored[0], frames)
            result = _result(scheme, link, runs[scheme.label], period_s, least, len(stored))
            if result.is_lossless:
                limit = max(ALLOWED_DIFFERENCE, _OWN_TIMES * own)
                if result.difference > limit:
                    raise InputError(
                        f"{scheme.label} gives other answers: an output is off by"
                        f" {result.difference:.2g} of its largest value, {limit:.2g} is allowed"
                    )
            results.append(result)
        return tuple(results)
    finally:
        for machine in (pair.device, pair.server):
            machine.close()


def choose(
    results: Sequence[SchemeResult], constraints: Constraints, policy: EncodingPolicy
) -> tuple[int, str]:
    """Choose the scheme to set up from the measurements: the simplest within 3 % of the best.

    Schemes with lossy encodings count only if the policy allows them. Those that exceed the
    deadline count only if all do.

    Args:
        results: the simplest scheme first.
        constraints: the objective, and the deadline.
        policy: the encodings that are allowed, and the error.

    Returns:
        Its index, and a sentence if the user would not expect the choice; else empty.
    """
    allowed = {each.name for each in policy.encodings}

    def is_allowed(result: SchemeResult) -> bool:
        # The planner has checked the loss of its own plans on the calibration inputs.
        if result.is_lossless or SPLIT in result.labels:
            return True
        is_close = policy.tolerance is not None and result.difference <= policy.tolerance
        return is_close and set(result.encodings) <= allowed

    def cost(result: SchemeResult) -> float:
        match constraints.objective:
            case Objective.THROUGHPUT if result.period_s is not None:
                return result.period_s
            case Objective.ENERGY:
                busy_s = (result.measured.busy_s(lane) for lane in (Lane.DEVICE, Lane.UPLINK))
                return float(constraints.energy(result.median_s, *busy_s))
        return result.median_s

    candidates = [index for index, result in enumerate(results) if is_allowed(result)]
    deadline_s, remark = constraints.deadline_s, ""
    if deadline_s is not None:
        in_time = [index for index in candidates if results[index].median_s <= deadline_s]
        if not in_time:
            remark = f"No scheme keeps the deadline of {format_s(deadline_s)} on these machines."
        candidates = in_time or candidates
    limit = min(cost(results[index]) for index in candidates) * (1 + _TIE)
    chosen = next(index for index in candidates if cost(results[index]) <= limit)
    if constraints.objective is not Objective.LATENCY:
        remark += f" {results[chosen].label} is best for {constraints.objective.value}."
    return chosen, remark.strip()


def _open(pair: Pair, schemes: Sequence[SchemeBundle], progress: Progress) -> "dict[str, Any]":
    """Send the bundles, serve them, and open a session of each on the device."""
    on_device, on_server = {}, {}
    for scheme in schemes:
        progress(f"sending {scheme.label}")
        if scheme.is_local:
            on_device[scheme.label] = pair.device.send_bundle(scheme.bundle, *Side)
            continue
        on_device[scheme.label] = pair.device.send_bundle(scheme.bundle, Side.DEVICE)
        on_server[scheme.label] = pair.server.send_bundle(scheme.bundle, Side.SERVER)
    address = None
    if on_server:
        progress("starting the server")
        listening = pair.server.serve(
            str(pair.meeting.listen),
            pair.server_files,
            tuple(on_server.values()),
            pair.server_options,
        )
        address = pair.meeting.reached_at(parse_address(listening).port)
    sessions = {}
    for scheme in schemes:
        progress(f"opening a session, {scheme.label}")
        sessions[scheme.label] = pair.device.open_session(
            on_device[scheme.label],
            address if scheme.label in on_server else None,
            pair.device_files if scheme.label in on_server else (),
            pair.device_options,
            scheme.plan,
        )
    return sessions


def _result(
    scheme: SchemeBundle,
    link: Link,
    runs: Sequence[MeasuredInference],
    period_s: float | None,
    least: int,
    samples: int,
) -> SchemeResult:
    """The result of a scheme's runs; the first one only warms up if there are more than `least`.

    The median of five is hardly changed by one slow run.
    """
    inputs = min(samples, len(runs))
    same = None if runs[0].same_class is None else sum(bool(r.same_class) for r in runs[:inputs])
    difference = max(run.difference for run in runs)
    runs = runs[1:] if len(runs) > least else runs
    latencies_s = tuple(run.latency_s for run in runs)
    middle_s = statistics.median(latencies_s)
    typical = min(runs, key=lambda run: abs(run.latency_s - middle_s))
    plan = scheme.followed
    predicted = plan.predicted(link) if plan.alternatives else None
    chosen = next((a for a in plan.alternatives if a.scheme == plan.scheme), None)
    return SchemeResult(
        label=scheme.label,
        scheme=plan.scheme,
        predicted_s=predicted.makespan_s if predicted else None,
        latencies_s=latencies_s,
        period_s=period_s,
        difference=difference,
        same_answers=same,
        inputs=inputs,
        is_lossless=plan.is_lossless,
        upload_bytes=sum(send.size_bytes or 0 for send in plan.uploads),
        cut=tuple(send.tensor for send in plan.uploads),
        encodings=tuple(send.encoding for send in plan.uploads),
        device_layers=sum(len(s.layers) for s in plan.segments if s.side is Side.DEVICE),
        memory_bytes=chosen.memory_bytes if chosen else None,
        predicted=predicted,
        measured=typical.timeline,
    )
