"""From files to a situation: the model read as the engine runs it, profiles, link, demand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from offload.bundle.sample_inputs import open_sizes_sentence
from offload.costs.encoding_table import Catalogue
from offload.costs.encodings import Allowance
from offload.costs.link import Link
from offload.costs.profile import Profile, estimate_profile, load_profile, uncounted
from offload.errors import InputError
from offload.files import temporary_folder
from offload.graph.cut_names import cut_names
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.planning.constraints import Wish, demand_of
from offload.planning.cut import cut_at_names
from offload.planning.scheme import Scheme, Situation

from offload_runtimes.encode.calibration import Calibration, read_calibration
from offload_runtimes.engine import Array, EngineOptions
from offload_runtimes.planning.measure import Subject, cached_profile, subject_of
from offload_runtimes.planning.sizes import measured_sizes

Progress = Callable[[str], None]

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
        wish: the objective and the limits.
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
    wish: Wish = field(default_factory=Wish)
    options: EngineOptions = field(default_factory=EngineOptions)
    allowance: Allowance = field(default_factory=Allowance)
    links: tuple[Link, ...] = ()
    worth: float = 0.05
    again: bool = False

    @property
    def is_given(self) -> bool:
        """Whether the request itself says what runs where: nothing needs to be compared."""
        return bool(self.cut) or self.scheme == Scheme.LOCAL


@dataclass(frozen=True)
class Prepared:
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

    def situation(
        self,
        link: Link | None = None,
        slowdown: float = 1.0,
        catalogue: Catalogue | None = None,
    ) -> Situation:
        """The situation on the request's link or another, the device slowed down further.

        `catalogue` holds the encodings to choose from; None: all cross raw.

        Raises:
            InputError: a profile is of another model, or the wish does not fit the model.
        """
        device = self.device.scaled(slowdown) if slowdown != 1 else self.device
        demand = demand_of(self.request.wish, self.graph)
        chosen = link or self.request.link
        return Situation.of(self.graph, device, self.server, chosen, demand, catalogue)


def prepare(request: SplitRequest, progress: Progress = lambda _: None) -> Prepared:
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
        subject = subject_of(model, folder, request.shapes)
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
    return Prepared(model, graph.sized(known), slower, server, request, calibration, unknown)


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
    subject: Subject,
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
