"""From a model file to a bundle: read, profile, plan, write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from offload.bundle.batchability import why_rows_depend
from offload.bundle.bundle import Bundle
from offload.bundle.model_inputs import signature
from offload.bundle.sample_inputs import open_sizes_sentence
from offload.bundle.write import write_bundle
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import EncodingPolicy
from offload.costs.link import Link
from offload.costs.profile import Profile, estimate_profile, load_profile, uncounted
from offload.errors import InputError
from offload.files import temporary_folder
from offload.graph.cut_names import cut_names
from offload.graph.load import Model, load_model
from offload.graph.model import Graph, Tensor
from offload.planning.cut import cut_at_names
from offload.planning.mix import batch_plans, make_mix, mix_over
from offload.planning.plan import Plan, Side
from offload.planning.plan_set import PlanSet, plans_over, slowdowns_between
from offload.planning.planner import at_planned_speed, make_plan
from offload.planning.problem import Constraints, Objective, PlanningProblem
from offload.planning.scheme import Scheme

from offload_runtimes.engine import Array, EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.calibration import Calibration, read_calibration
from offload_runtimes.measure.choose_encodings import EncodingSelector
from offload_runtimes.measure.inner_tensors import measured_sizes
from offload_runtimes.measure.profile import OptimizedModel, cached_profile, optimized_model
from offload_runtimes.measure.proof_record import prove
from offload_runtimes.measure.verify import missing_types

# The largest share of uncounted work that an estimate is made with.
MOST_UNCOUNTED = 0.05
_LEAST_SLOWDOWN = 0.001


@dataclass(frozen=True)
class SplitRequest:
    """What to split and how.

    Attributes:
        model: the .onnx file.
        link: the link between device and server.
        links: a range of links, ascending, for a bundle of several plans; empty: only `link`.
        worth: drop a plan of the range if another is within this share of it at every link and
            slow-down, and a plan that shares frames if the others give all but this share of the
            frames per second.
        share: let several plans share the rows of a batch, and with the objective throughput the
            frames of a stream, where that gains more than the prediction error.
        scheme: `auto` or a scheme's name.
        cut: tensors to cut at, each text a name or several separated by commas; empty: the
            planner chooses.
        device: the device's profile file, or its FLOP/s for an estimate; None: this machine.
        server: the server's profile file, or its FLOP/s for an estimate; None: this machine.
        slowdown: factor on the device's seconds; 1 for a device as profiled.
        slowdowns: a range of them, ascending, `slowdown` first, for a bundle of several plans;
            empty: only `slowdown`.
        shapes: sizes of inputs with dynamic dimensions.
        solver: the scheduler that orders the device's layers.
        constraints: the objective and the limits.
        options: how onnxruntime runs while profiling here.
        allowance: the encodings that tensors may be sent with, and the output error allowed.
        again: measure again what is cached on this machine.
    """

    model: Path
    link: Link
    scheme: str = "auto"
    cut: tuple[str, ...] = ()
    device: Path | float | None = None
    server: Path | float | None = None
    slowdown: float = 1.0
    shapes: Mapping[str, tuple[int, ...]] | None = None
    solver: str = "optimal"
    constraints: Constraints = field(default_factory=Constraints)
    options: EngineOptions = field(default_factory=EngineOptions)
    allowance: EncodingPolicy = field(default_factory=EncodingPolicy)
    links: tuple[Link, ...] = ()
    slowdowns: tuple[float, ...] = ()
    worth: float = 0.05
    share: bool = True
    again: bool = False

    def __post_init__(self) -> None:
        factors = self.slowdowns or (self.slowdown,)
        ascends = all(a < b for a, b in pairwise((0.0, *factors, float("inf"))))
        if not (ascends and factors[0] == self.slowdown):
            raise InputError(
                f"slow-downs must ascend from the first, {self.slowdown:g}, which must be positive:"
                f" got {', '.join(f'{factor:g}' for factor in factors)}"
            )

    @property
    def is_range(self) -> bool:
        """Whether to plan for several links or several slow-downs."""
        return bool(self.links) or len(self.slowdowns) > 1

    @property
    def fixes_cut(self) -> bool:
        """Whether the request itself fixes what runs where: no plans need to be compared."""
        return bool(self.cut) or self.scheme == Scheme.LOCAL

    @property
    def shares_frames(self) -> bool:
        """Whether several plans may share the frames of a stream.

        Not over a range of links or slow-downs with a deadline or a limit on energy: a plan that
        keeps it at one point may break it at another.
        """
        constraints = self.constraints
        is_limited = constraints.deadline_s is not None or constraints.energy_j is not None
        return (
            self.share
            and constraints.objective is Objective.THROUGHPUT
            and self.scheme == "auto"
            and not self.cut
            and not (self.is_range and is_limited)
        )

    @property
    def shares_rows(self) -> bool:
        """Whether several plans may share the rows of a batch.

        Not for the least energy or within a limit on it: sharing saves time, not energy. Over a
        range of links only plans that share frames, which a device loads together anyway.
        """
        constraints = self.constraints
        saves_energy = constraints.objective is Objective.ENERGY or constraints.energy_j is not None
        is_free = self.share and self.scheme == "auto" and not self.cut
        return is_free and not saves_energy and (not self.is_range or self.shares_frames)


@dataclass(frozen=True)
class PlanningInputs:
    """The model, its layers and the profiles, ready for planning.

    Attributes:
        model: the loaded model.
        graph: its layers as the engine fuses them, with measured sizes of tensors whose size
            depends on data.
        device: the device's profile, slowed down as requested.
        server: the server's profile.
        request: the request.
        calibration: the calibration inputs of the request; None: none were given.
        open_sizes: which input sizes are open and how to give them, in which case the plan's times
            are not predicted; empty: all are known.
    """

    model: Model
    graph: Graph
    device: Profile
    server: Profile
    request: SplitRequest
    calibration: Calibration | None = None
    open_sizes: str = ""

    @property
    def rows(self) -> int:
        """Rows of the batch that is planned, if they are independent and may be shared; else 0."""
        if not self.request.shares_rows or self.open_sizes:
            return 0
        shapes = [self.graph.tensors[name].shape for name in self.graph.inputs]
        counts = {shape[0] if shape else None for shape in shapes}
        rows = counts.pop() if len(counts) == 1 else None
        return rows if rows and not why_rows_depend(self.model) else 0

    @property
    def seconds(self) -> Mapping[Side, tuple[float, ...]]:
        """Seconds of each layer on each side."""
        profiles = {Side.DEVICE: self.device, Side.SERVER: self.server}
        return {side: profile.costs_of(self.graph) for side, profile in profiles.items()}

    def problem(
        self,
        link: Link | None = None,
        slowdown: float = 1.0,
        table: EncodingTable | None = None,
    ) -> PlanningProblem:
        """The problem on the request's link or another, the device slowed down further.

        `table` holds the encodings to choose from; None: all tensors are sent raw.

        Raises:
            InputError: a profile belongs to another model, or more layers are pinned than there
                are.
        """
        device = self.device.scaled(slowdown) if slowdown != 1 else self.device
        chosen = link or self.request.link
        return PlanningProblem.of(
            self.graph, device, self.server, chosen, self.request.constraints, table
        )


def prepare(request: SplitRequest, progress: Progress = lambda _: None) -> PlanningInputs:
    """Read the model and its profiles; a profile that isn't in a file is measured here.

    Sizes that depend on data are measured on the calibration inputs, where there are any, even if
    the profiles have them.

    Plans cannot be compared while input sizes are open, or where more than 5 % of the work of an
    estimate could not be counted; a requested cut or local plan is made nevertheless.

    Raises:
        InputError: a file, tensor or shape of the request can't be used, sizes are open, or too
            much of the work is unknown for an estimate.
    """
    progress(f"reading {request.model}")
    model = load_model(request.model)
    with temporary_folder() as folder:
        subject = optimized_model(model, folder, request.shapes)
        unknown = open_sizes_sentence(subject.inputs.values)
        if unknown and not request.fixes_cut:
            raise InputError(unknown)
        calibration = None
        if request.allowance.calibration is not None:
            calibration = read_calibration(request.allowance.calibration, subject.inputs.values)
        samples = calibration.feeds if calibration else ()
        if samples and subject.graph.uncounted:
            subject = subject.counted_on(samples[0])
        if not (request.fixes_cut or request.scheme == Scheme.CLOUD):
            estimated = isinstance(request.device, float) or isinstance(request.server, float)
            if estimated and subject.graph.uncounted_share > MOST_UNCOUNTED:
                raise InputError(
                    f"{uncounted(subject.graph)}, too much for an estimate: give inputs with"
                    " --calibration, or measure with `offload profile` and give the files to"
                    " --device and --server"
                )
        graph = subject.graph
        if request.cut:
            names = tuple(name for text in request.cut for name in cut_names(model, text))
            request = replace(request, cut=names)
            graph = subject.broken_at(names)
            cut_at_names(model, graph, names)  # refuse a wrong cut before anything is measured
        device = _profile(request.device, subject, request, samples, progress)
        same = request.server == request.device
        server = device if same else _profile(request.server, subject, request, samples, progress)
        if samples:
            # A profile measured here has the sizes already, unless the cut changed the layers.
            if request.cut or None not in (request.device, request.server):
                sizes = measured_sizes(model, graph, request.options, samples)
            else:
                sizes = dict((device if request.device is None else server).sizes)
            device, server = device.with_sizes(sizes), server.with_sizes(sizes)
    device, server = (each.refined(subject.graph, graph) for each in (device, server))
    slower = device.scaled(request.slowdown) if request.slowdown != 1 else device
    known = {name: size.mean_bytes for name, size in {**server.sizes, **device.sizes}.items()}
    return PlanningInputs(model, graph.sized(known), slower, server, request, calibration, unknown)


def _profile(
    source: Path | float | None,
    subject: OptimizedModel,
    request: SplitRequest,
    samples: Sequence[Mapping[str, Array]],
    progress: Progress,
) -> Profile:
    if isinstance(source, Path):
        return load_profile(source)
    if source is not None:
        return estimate_profile(subject.graph, source, f"{source / 1e9:g} GFLOP/s")
    return cached_profile(
        subject, request.options, again=request.again, samples=samples, progress=progress
    )


def parse_machine(text: str | None) -> Path | float | None:
    """A profile's file, or FLOP/s like `5e9`; nothing is this machine.

    Raises:
        InputError: a rate that isn't positive.
    """
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        return Path(text)
    if not 0 < rate < float("inf"):
        raise InputError(
            f"{text} FLOP/s is not a speed: give a positive number like 5e9, or a file"
        )
    return rate


# A model that planning did not run is run to prove its bundle only up to this size.
_PROVED_BYTES = 1 << 26


def parse_slowdowns(text: str) -> tuple[float, ...]:
    """Slow-downs of the device: one factor like `5`, or a few from a range like `1..3`.

    Raises:
        InputError: not a factor from 0.001 on, or not a range of two, the smaller first.
    """
    try:
        factors = [float(part) for part in text.split("..")]
    except ValueError:
        factors = []
    ascends = all(a < b for a, b in pairwise((0.0, *factors, float("inf"))))
    if not (1 <= len(factors) <= 2 and ascends and factors[0] >= _LEAST_SLOWDOWN):
        raise InputError(
            f"--slowdown {text!r} is not understood: write a factor of at least"
            f" {_LEAST_SLOWDOWN:g} like 5, or a range from the smaller factor to the larger one"
            " like 1..3"
        )
    return slowdowns_between(*factors) if len(factors) == 2 else (factors[0],)


def split(request: SplitRequest, target: Path, progress: Progress = lambda _: None) -> Bundle:
    """Plan a model's split and write the bundle.

    Args:
        request: what to split and how.
        target: the bundle's folder; an older bundle there is replaced.
        progress: called with a phrase before each step.

    Raises:
        InputError: a file, tensor, shape, scheme or limit of the request can't be used.
    """
    return write_split(prepare(request, progress), target, progress)


def write_split(
    prepared: PlanningInputs, target: Path, progress: Progress = lambda _: None
) -> Bundle:
    """Plan from prepared inputs and write the bundle; as `split`."""
    request, model, graph = prepared.request, prepared.model, prepared.graph
    signature(model, graph)  # raises an error for types that a session does not support
    cut = cut_at_names(model, graph, request.cut) if request.cut else None
    if cut is not None and not cut.device:
        raise InputError(
            f"a cut at {', '.join(map(repr, request.cut))} leaves the device nothing to compute:"
            " cut later, or use --scheme cloud"
        )
    types = missing_types(model, graph)
    selector = encoding_selector(prepared, progress, types)

    def planned(link: Link, slowdown: float = 1.0) -> PlanSet:
        def with_table(table: EncodingTable | None) -> PlanSet:
            slower = f", device {slowdown:.3g}x slower" if slowdown != 1 else ""
            progress(f"planning for {link.describe()}{slower}")
            problem = prepared.problem(link, slowdown, table)
            if request.shares_frames:
                if request.is_range:
                    return make_mix(problem, request.solver)[0]
                plans, why = make_mix(problem, request.solver, request.worth)
                return plans.with_note(why)
            return PlanSet((make_plan(problem, request.scheme, cut, request.solver),))

        plan_set = selector.plan_set(with_table)
        plans = tuple(
            at_planned_speed(replace(plan, device=prepared.device.machine), slowdown)
            for plan in plan_set.plans
        )
        if prepared.open_sizes:
            reason = f"As requested; no times are predicted: {prepared.open_sizes}."
            plans = (replace(plans[0], reason=reason, alternatives=(), instance=None),)
        return replace(plan_set, plans=plans)

    plans = _plans_over(prepared, planned) if request.is_range else planned(request.link)
    plans = _with_rows(prepared, plans, selector)
    assert model.path is not None
    is_raw = [each.name for each in request.allowance.encodings] == ["raw"]
    was_run = not is_raw or request.device is None or request.server is None
    if was_run or model.path.stat().st_size + model.outside_bytes <= _PROVED_BYTES:
        progress(f"writing {target}")
        proof = partial(prove, model, shapes=request.shapes or {})
        return write_bundle(model, graph, plans, target, types, proof, prepared.seconds)
    progress(f"writing {target} without a proof, which would have to run the whole model")
    return write_bundle(model, graph, plans, target, types, seconds=prepared.seconds)


def _plans_over(prepared: PlanningInputs, planned: Callable[[Link, float], PlanSet]) -> PlanSet:
    """The plans for the request's links and slow-downs, from those for each of them.

    The slow-downs are counted from the first one, that of the profile of `prepared`.
    """
    request = prepared.request
    constraints = request.constraints
    if constraints.objective is Objective.ENERGY:
        raise InputError(
            "plans for a range of links or slow-downs are compared by latency or throughput while"
            " they run: give one link and one slow-down with the objective energy"
        )
    by_point: dict[tuple[Link, float], PlanSet] = {}

    def single(link: Link, slowdown: float) -> Plan:
        by_point[link, slowdown] = planned(link, slowdown)
        return by_point[link, slowdown].plans[0]

    is_limited = constraints.deadline_s is not None or constraints.energy_j is not None
    singles = plans_over(
        single,
        request.links or (request.link,),
        0.0 if is_limited else request.worth,
        [factor / request.slowdown for factor in request.slowdowns or (request.slowdown,)],
    )
    return mix_over(prepared.problem(), singles, by_point, request.worth)


def _with_rows(prepared: PlanningInputs, plans: PlanSet, selector: EncodingSelector) -> PlanSet:
    """The plans, with those that share the rows of a batch where the rows are independent."""
    request, rows = prepared.request, prepared.rows
    if rows < 2 or (request.is_range and not plans.shares):
        return plans
    if len(plans.plans) == 1:
        problem = prepared.problem(table=selector.lossless())
        mates = batch_plans(problem, request.link, plans.plans[0], rows, request.worth).plans
        machine = prepared.device.machine
        plans = replace(plans, plans=tuple(replace(plan, device=machine) for plan in mates))
    return replace(plans, rows=rows)


def encoding_selector(
    prepared: PlanningInputs, progress: Progress, types: Mapping[str, Tensor] | None = None
) -> EncodingSelector:
    """The selector of encodings for prepared inputs; `types` as `missing_types` finds them."""
    request, graph = prepared.request, prepared.graph
    return EncodingSelector(
        prepared.model,
        graph,
        request.allowance,
        request.options,
        missing_types(prepared.model, graph) if types is None else types,
        progress,
        request.again,
        prepared.calibration,
    )
