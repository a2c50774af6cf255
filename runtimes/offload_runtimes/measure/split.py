"""From a model file to a bundle: read, profile, plan, write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from offload.bundle.bundle import Bundle
from offload.bundle.sample_inputs import open_sizes_sentence
from offload.bundle.write import check_types, signature, write_plans
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import EncodingPolicy
from offload.costs.link import Link
from offload.costs.profile import Profile, estimate_profile, load_profile, uncounted
from offload.errors import InputError
from offload.files import temporary_folder
from offload.graph.cut_names import cut_names
from offload.graph.load import Model, load_model
from offload.graph.model import Graph, Tensor
from offload.planning.cut import Cut, cut_at_names
from offload.planning.plan import Plan
from offload.planning.plan_set import PlanSet, plans_over
from offload.planning.planner import make_plan
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


@dataclass(frozen=True)
class SplitRequest:
    """How a model shall be split.

    Attributes:
        model: the .onnx file.
        link: the link between device and server.
        links: a range of links, ascending, to make a bundle of several plans for; empty: `link`
            alone.
        worth: how much faster a plan must be than the others somewhere in that range to be kept,
            as a share.
        scheme: `auto` or a scheme's name.
        cut: tensors to cut at, each text a name or several separated by commas; empty: the
            planner chooses.
        device: the device's profile file, or its FLOP/s for an estimate; None: this machine.
        server: the server's profile file, or its FLOP/s for an estimate; None: this machine.
        slowdown: factor on the device's seconds; 1 for a device as profiled.
        shapes: sizes of inputs with dynamic dimensions.
        solver: the scheduler that orders the device's layers.
        constraints: the objective and the limits.
        options: how onnxruntime runs while profiling here.
        allowance: the encodings that tensors may have on their way.
        again: whether what is known of this machine is measured again.
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
    worth: float = 0.05
    again: bool = False

    @property
    def is_given(self) -> bool:
        """Whether the request itself says what runs where: nothing needs to be compared."""
        return bool(self.cut) or self.scheme == Scheme.LOCAL


@dataclass(frozen=True)
class PlanningInputs:
    """All that planning needs.

    Attributes:
        model: the loaded model.
        graph: its layers as the engine fuses them, sizes that depend on data as profiled.
        device: the device's profile, slowed down as asked.
        server: the server's profile.
        request: what was asked.
        calibration: the inputs of the request's allowance; None: none were given.
        open_sizes: which input sizes are open and how to give them; empty: all are known. A plan
            is then not predicted.
    """

    model: Model
    graph: Graph
    device: Profile
    server: Profile
    request: SplitRequest
    calibration: Calibration | None = None
    open_sizes: str = ""

    def problem(
        self,
        link: Link | None = None,
        slowdown: float = 1.0,
        table: EncodingTable | None = None,
    ) -> PlanningProblem:
        """The situation on the request's link or another, the device slowed down further.

        `catalogue` holds the encodings to choose from; None: all cross raw.

        Raises:
            InputError: a profile is of another model, or the constraints does not fit the model.
        """
        device = self.device.scaled(slowdown) if slowdown != 1 else self.device
        chosen = link or self.request.link
        return PlanningProblem.of(
            self.graph, device, self.server, chosen, self.request.constraints, table
        )


def prepare(request: SplitRequest, progress: Progress = lambda _: None) -> PlanningInputs:
    """Read the model and its profiles; what isn't in a file is measured here.

    Sizes that depend on data are measured on the calibration inputs where there are any, whatever
    the profiles say of them.

    Nothing can be compared while sizes of inputs are open, or where more than 5 % of the work
    that an estimate rests on could not be counted; a cut or a local plan that was asked for is
    made all the same.

    Raises:
        InputError: a file, tensor or shape of the request can't be used, sizes are open, or too
            much of the work is unknown for an estimate.
    """
    progress(f"reading {request.model}")
    model = load_model(request.model)
    with temporary_folder() as folder:
        subject = optimized_model(model, folder, request.shapes)
        unknown = open_sizes_sentence(subject.inputs.values)
        if unknown and not request.is_given:
            raise InputError(unknown)
        given = request.allowance.calibration
        calibration = None if given is None else read_calibration(given, subject.inputs.values)
        samples = calibration.feeds if calibration else ()
        if samples and subject.graph.uncounted:
            subject = subject.counted_on(samples[0])
        if not (request.is_given or request.scheme == Scheme.CLOUD):
            _check_counted(subject.graph, request)
        graph = subject.graph
        if request.cut:
            names = tuple(name for text in request.cut for name in cut_names(model, text))
            request = replace(request, cut=names)
            graph = subject.broken_at(names)
            cut_at_names(model, graph, names)  # refused before anything is measured
        device = _profile(request.device, subject, request, samples, progress)
        same = request.server == request.device
        server = device if same else _profile(request.server, subject, request, samples, progress)
        if samples:
            measured = ((device, request.device), (server, request.server))
            here = next((profile for profile, source in measured if source is None), None)
            sizes = (
                measured_sizes(model, graph, request.options, samples)
                if here is None or request.cut
                else here.sizes
            )
            device, server = device.with_sizes(sizes), server.with_sizes(sizes)
    device, server = (each.refined(subject.graph, graph) for each in (device, server))
    slower = device.scaled(request.slowdown) if request.slowdown != 1 else device
    known = {name: size.mean_bytes for name, size in {**server.sizes, **device.sizes}.items()}
    return PlanningInputs(model, graph.sized(known), slower, server, request, calibration, unknown)


def _check_counted(graph: Graph, request: SplitRequest) -> None:
    """Refuse to compare plans by estimates where too little of the work was counted."""
    estimated = isinstance(request.device, float) or isinstance(request.server, float)
    if estimated and graph.uncounted_share > MOST_UNCOUNTED:
        raise InputError(
            f"{uncounted(graph)}, too much for an estimate: give inputs with --calibration, or"
            " measure with `offload profile` and give the files to --device and --server"
        )


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
        raise InputError(f"{text} FLOP/s is no speed: give a positive one, like 5e9, or a file")
    return rate


# A model that planning did not run is run to prove its bundle only up to this size.
_PROVED_BYTES = 1 << 26

__all__ = ["SplitRequest", "encoding_selector", "split", "write_split"]


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
    """Plan what was prepared and write the bundle; as `split`."""
    request, graph = prepared.request, prepared.graph
    check_types(value for values in signature(prepared.model, graph) for value in values)
    cut = _forced(prepared) if request.cut else None
    types = missing_types(prepared.model, graph)

    chooser = encoding_selector(prepared, progress, types)

    def planned(link: Link) -> Plan:
        def on(catalogue: EncodingTable | None) -> Plan:
            progress(f"planning for {link.describe()}")
            situation = prepared.problem(link, table=catalogue)
            return make_plan(situation, request.scheme, cut, request.solver)

        plan = replace(chooser.plan(on), device=prepared.device.machine)
        if prepared.open_sizes:
            reason = f"As asked; nothing is predicted: {prepared.open_sizes}."
            return replace(plan, reason=reason, alternatives=(), instance={})
        return plan

    ranged = _ranged(request, planned)
    if _is_run_here(request) or _weight_bytes(prepared.model) <= _PROVED_BYTES:
        progress(f"writing {target}")
        proof = partial(prove, prepared.model, shapes=request.shapes or {})
        return write_plans(prepared.model, graph, ranged, target, types, proof)
    progress(f"writing {target} without a proof, for which the whole model would have to run")
    return write_plans(prepared.model, graph, ranged, target, types)


def _is_run_here(request: SplitRequest) -> bool:
    """Whether planning runs the model, to measure seconds or the sizes of encoded tensors."""
    raw = [each.name for each in request.allowance.encodings] == ["raw"]
    return not raw or request.device is None or request.server is None


def _weight_bytes(model: Model) -> int:
    """Bytes of the model's file and of the weights outside it."""
    assert model.path is not None
    return model.path.stat().st_size + model.outside_bytes


def _ranged(request: SplitRequest, planned: Callable[[Link], Plan]) -> PlanSet:
    if not request.links:
        return PlanSet((planned(request.link),))
    if request.constraints.objective == Objective.ENERGY:
        raise InputError(
            "plans for a range of links are compared by latency or throughput while they run:"
            " give one link with the objective energy"
        )
    limited = request.constraints.deadline_s is not None or request.constraints.energy_j is not None
    return plans_over(planned, request.links, 0.0 if limited else request.worth)


def _forced(prepared: PlanningInputs) -> Cut:
    names = prepared.request.cut
    cut = cut_at_names(prepared.model, prepared.graph, names)
    if not cut.device:
        raise InputError(
            f"a cut at {', '.join(map(repr, names))} leaves the device nothing to compute: cut"
            " later, or ask for --scheme cloud"
        )
    return cut


def encoding_selector(
    prepared: PlanningInputs, progress: Progress, types: Mapping[str, Tensor] | None = None
) -> EncodingSelector:
    """Who chooses the encodings of what was prepared; `types` as `missing_types` finds them."""
    request, graph = prepared.request, prepared.graph
    known = missing_types(prepared.model, graph) if types is None else types
    return EncodingSelector(
        prepared.model,
        graph,
        request.allowance,
        request.options,
        known,
        progress,
        request.again,
        prepared.calibration,
    )
