"""From files to a situation: the model read as the engine runs it, profiles, link, demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offload.cost.link import Link
from offload.cost.profile import Profile, estimate_profile, load_profile
from offload.encoding.allowance import Allowance
from offload.encoding.catalogue import Catalogue
from offload.errors import InputError
from offload.files import temporary_folder
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.plan.candidate import Situation
from offload.plan.wish import Wish, demand_of

from offload_runtimes.engine import EngineOptions
from offload_runtimes.planning.measure import Subject, cached_profile, subject_of

Progress = Callable[[str], None]


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
        cut: tensors to cut at; empty: the planner chooses.
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


@dataclass(frozen=True)
class Prepared:
    """All that planning needs.

    Attributes:
        model: the loaded model.
        graph: its layers as the engine fuses them, sizes that depend on data as profiled.
        device: the device's profile, slowed down as asked.
        server: the server's profile.
        request: what was asked.
    """

    model: Model
    graph: Graph
    device: Profile
    server: Profile
    request: SplitRequest

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

    Raises:
        InputError: a file, tensor or shape of the request can't be used.
    """
    progress(f"reading {request.model}")
    model = load_model(request.model)
    with temporary_folder() as folder:
        subject = subject_of(model, folder, request.shapes, frozenset(request.cut))
        device = _profile(request.device, subject, request, progress)
        same = request.server == request.device
        server = device if same else _profile(request.server, subject, request, progress)
    slower = device.scaled(request.slowdown) if request.slowdown != 1 else device
    sizes = {name: size.mean_bytes for name, size in {**server.sizes, **device.sizes}.items()}
    return Prepared(model, subject.graph.sized(sizes), slower, server, request)


def _profile(
    source: Path | float | None, subject: Subject, request: SplitRequest, progress: Progress
) -> Profile:
    if isinstance(source, Path):
        return load_profile(source)
    if source is not None:
        return estimate_profile(subject.graph, source, f"{source / 1e9:g} GFLOP/s")
    return cached_profile(subject, request.options, again=request.again, progress=progress)


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
