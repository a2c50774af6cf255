"""What the experiments measure: models, their inputs and costs, and every scheme as a plan."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from offload.costs.link import Link
from offload.costs.profile import Profile, load_profile
from offload.errors import InputError
from offload.graph.load import Model, load_model
from offload.graph.model import Graph
from offload.planning.cut import Cut, all_local, cut_at
from offload.planning.plan import Plan
from offload.planning.planner import (
    choose,
    compare,
    plan_of,
    search,
    serial_cut,
    simplest_within_margin,
)
from offload.planning.problem import Constraints, PlanningProblem
from offload.planning.program import scheduling_problem
from offload.planning.scheme import Scheme, SchemeEstimate, estimate
from offload.scheduling.solve import solve
from offload_models import image, multi_stream, randwire, zoo
from offload_runtimes.engine import Array, EngineOptions, load
from offload_runtimes.measure import Progress
from offload_runtimes.measure.profile import measure, optimized_model

# One thread on each side: a small device, and a core left for the server.
OPTIONS = EngineOptions(threads=1)
PAPERS = ("alexnet_parallel", "googlenet", "multi_stream", "randwire")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FLOATS = "image_fp32"
_LIGHT_HEADS = 256
# Of the first 24, the one whose own cut, with the input kept, gains most: `make bench-own-cut`.
_PRIVATE_WIRING = 8
_RUNS = 10
# What else the machine does only ever makes layers slower: the quickest table is kept.
_TABLES = 3


@dataclass(frozen=True)
class Study:
    """A model to measure.

    Attributes:
        name: what it is called in tables.
        build: makes the model.
        inside: cut inside the model, through several tensors, whatever would be best.
        keep_input: the input never leaves the device, as `offload split --keep-input` has it.
    """

    name: str
    build: zoo.Builder
    inside: bool = False
    keep_input: bool = False

    @property
    def takes_camera(self) -> bool:
        """Whether a camera's bytes may be its input too."""
        return not (self.inside or self.keep_input)


def _studies() -> Mapping[str, Study]:
    found = {name: Study(name, model.build) for name, model in zoo.ZOO.items()}
    light = partial(multi_stream.build, hidden=_LIGHT_HEADS)
    found["multi_stream"] = Study("multi_stream", light)
    inside = Study("randwire_inside", zoo.ZOO["randwire"].build, inside=True)
    wiring = partial(randwire.build, seed=_PRIVATE_WIRING)
    private = Study("randwire_private", wiring, keep_input=True)
    return MappingProxyType({**found, inside.name: inside, private.name: private})


STUDIES = _studies()


@dataclass(frozen=True)
class Variant:
    """One form of a model: as built, or with a camera's bytes as its input.

    Attributes:
        model: loaded from its file.
        graph: its layers.
        device: seconds per layer on the device.
        server: seconds per layer on the server.
        feeds: .npz of its input.
    """

    model: Model
    graph: Graph
    device: Profile
    server: Profile
    feeds: Path


@dataclass(frozen=True)
class PreparedStudy:
    """A study ready to be measured.

    Attributes:
        study: what it is.
        floats: the model with float input, as built.
        camera: the same with one uint8 image as input, if it has a single image.
        expected: .npz of the outputs that both must give.
    """

    study: Study
    floats: Variant
    camera: Variant | None
    expected: Path


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        InputError: there is none.
    """
    if name not in STUDIES:
        raise InputError(f"no model is called {name!r}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]


def prepare(
    study: Study, folder: Path, slowdown: float, profiles: Path | None, progress: Progress
) -> PreparedStudy:
    """Build a model and its inputs into a folder and measure its layers.

    Args:
        study: which model.
        folder: gets the files.
        slowdown: how many times slower than this machine the device is.
        profiles: folder of `MODEL.device.json` and `MODEL.server.json`, which replace measuring
            here where they are.
        progress: called with a phrase before each step.

    Raises:
        InputError: a profile is of another model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress(f"{study.name}: building")
    proto = study.build()
    single = list(image.input_shapes(proto)) == ["image"] and study.takes_camera
    if single:
        proto = image.rename_input(proto, "image", _FLOATS)
    picture, feeds = _inputs(image.input_shapes(proto), single)

    def variant(kind: str, feeds: Mapping[str, Array]) -> Variant:
        given = [_given(profiles, f"{study.name}.{side}.json") for side in ("device", "server")]
        progress(f"{study.name}: measuring its layers ({kind})")
        return _variant(folder, kind, feeds, slowdown, given)

    zoo.save(proto, folder / "floats.onnx")
    floats = variant("floats", feeds)
    camera = None
    if picture is not None:
        _, height, width, _ = picture.shape
        raw = image.with_image_input(proto, _FLOATS, height, width, _MEAN, _STD)
        zoo.save(raw, folder / "camera.onnx")
        camera = variant("camera", {"image": picture})
    expected = folder / "expected.npz"
    _save(expected, _answers(floats.model, feeds))
    return PreparedStudy(study, floats, camera, expected)


def _inputs(
    shapes: Mapping[str, tuple[int, ...]], single: bool
) -> tuple[Array | None, dict[str, Array]]:
    """A seeded image and the floats that it stands for; else random floats for every input."""
    random = np.random.default_rng(0)
    if not single:
        return None, {n: random.random(shape, dtype=np.float32) for n, shape in shapes.items()}
    _, _, height, width = shapes[_FLOATS]
    picture = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    floats = (picture / 255.0 - np.array(_MEAN)) / np.array(_STD)
    return picture, {_FLOATS: np.ascontiguousarray(floats.astype(np.float32).transpose(0, 3, 1, 2))}


def _variant(
    folder: Path,
    kind: str,
    feeds: Mapping[str, Array],
    slowdown: float,
    given: Sequence[Profile | None],
) -> Variant:
    scratch, arrays = folder / kind, folder / f"{kind}.npz"
    scratch.mkdir(exist_ok=True)
    _save(arrays, feeds)
    model = load_model(folder / f"{kind}.onnx")
    subject = optimized_model(model, scratch)
    device, server = given
    if server is None or device is None:
        tables = [measure(subject, OPTIONS, feeds=feeds, runs=_RUNS) for _ in range(_TABLES)]
        here = min(tables, key=lambda table: table.whole_s)
        server, device = server or here, device or here.scaled(slowdown)
    return Variant(model, subject.graph, device, server, arrays)


def _given(profiles: Path | None, name: str) -> Profile | None:
    path = profiles / name if profiles else None
    return load_profile(path) if path and path.is_file() else None


def _answers(model: Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    assert model.path is not None
    engine = load(model.path, OPTIONS)
    names = [value.name for value in engine.outputs]
    return dict(zip(names, engine.run(names, feeds), strict=True))


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy takes any keyword


PAPERS_SOLVERS = ("tree-merge", "levels")
_REPEATS = 10
_SEARCHES = 3


@dataclass(frozen=True)
class Planned:
    """One scheme as it will run.

    Attributes:
        variant: the form of the model.
        plan: the plan, with its prediction.
        picked: the planner would choose it.
    """

    variant: Variant
    plan: Plan
    picked: bool = False

    @property
    def program(self) -> object:
        """Equal for schemes that come to the same thing; the engine orders a segment itself."""
        segments = tuple((s.id, s.side, frozenset(s.layers)) for s in self.plan.segments)
        return self.variant.model.path, segments, self.plan.steps


def plans_of(prepared: PreparedStudy, link: Link) -> dict[str, Planned]:
    """A plan for every scheme, by the scheme's key."""
    if prepared.study.inside:
        return _inside(prepared, link)
    floats, situation = prepared.floats, planning_problem(prepared, link)
    found = compare(situation)
    best = simplest_within_margin(found, choose(situation, found))
    shared = next(c.cut for c in found if c.scheme is Scheme.PARTITION)
    orders = {"fifo": _ordered(situation, shared, "fifo"), "paper": _papers(situation, shared)}
    plans = {
        c.scheme.value: Planned(floats, plan_of(situation, found, c), c is best) for c in found
    }
    for key, one in orders.items():
        plans[key] = Planned(floats, plan_of(situation, found, one))
    if prepared.camera:
        plans |= _raw(prepared.camera, link)
    return plans


def planning_problem(prepared: PreparedStudy, link: Link) -> PlanningProblem:
    """The study's model with float input on a link, under the study's limits."""
    floats = prepared.floats
    constraints = Constraints(keep_input=prepared.study.keep_input)
    return PlanningProblem.of(floats.graph, floats.device, floats.server, link, constraints)


def _raw(camera: Variant, link: Link) -> dict[str, Planned]:
    situation = PlanningProblem.of(camera.graph, camera.device, camera.server, link)
    found = compare(situation)
    cloud = next(c for c in found if c.scheme is Scheme.CLOUD)
    best = simplest_within_margin(found, choose(situation, found))
    return {
        "cloud-raw": Planned(camera, plan_of(situation, found, cloud), cloud is best),
        "auto-raw": Planned(camera, plan_of(situation, found, best), True),
    }


def _inside(prepared: PreparedStudy, link: Link) -> dict[str, Planned]:
    """LO; PO, every order and OPSS on a cut through three tensors or more, best or not."""
    situation = planning_problem(prepared, link)
    cut = inner_cut(situation)
    serial = estimate(situation, Scheme.PARTITION, cut)
    best = estimate(situation, Scheme.OPSS, cut)
    whole = estimate(situation, Scheme.LOCAL, all_local(situation.graph))
    found = {
        "local": whole,
        "partition": serial,
        "fifo": _ordered(situation, cut, "fifo"),
        "paper": _papers(situation, cut),
        "opss": best,
    }
    all_of_them = (whole, serial, best)
    return {
        key: Planned(prepared.floats, plan_of(situation, all_of_them, c))
        for key, c in found.items()
    }


def inner_cut(situation: PlanningProblem, least: int = 3) -> Cut:
    """The cut behind a prefix of the layers, through several tensors, where overlap brings most.

    Raises:
        InputError: the model has no place with so many tensors.
    """
    graph = situation.graph
    prefixes = (cut_at(graph, frozenset(range(end))) for end in range(1, len(graph.layers)))
    found = [cut for cut in prefixes if len(cut.uploads) >= least]
    if not found:
        raise InputError(f"{graph.name} has no cut of {least} tensors")

    def brings(cut: Cut) -> float:
        serial = estimate(situation, Scheme.PARTITION, cut)
        return serial.latency_s / _ordered(situation, cut, "fifo").latency_s

    return max(found, key=brings)


def _ordered(situation: PlanningProblem, cut: Cut, solver: str) -> SchemeEstimate:
    return estimate(situation, Scheme.OPSS, cut, solver)


def _papers(situation: PlanningProblem, cut: Cut) -> SchemeEstimate:
    """The paper's scheduler for trees, or the one for all other graphs."""
    trees, general = PAPERS_SOLVERS
    try:
        return _ordered(situation, cut, trees)
    except InputError:
        return _ordered(situation, cut, general)


def overheads(prepared: PreparedStudy, link: Link) -> dict[str, list[float]]:
    """Seconds of planning, by scheme: the cut and its order, repeated."""
    situation = planning_problem(prepared, link)
    graph, costs = situation.graph, situation.costs

    def order(solver: Callable[[PlanningProblem, Cut], object]) -> Callable[[], object]:
        return lambda: solver(situation, serial_cut(situation))

    def best(_: PlanningProblem, cut: Cut) -> object:
        problem = scheduling_problem(graph, costs, cut)
        return problem and solve(problem.instance)

    def papers(_: PlanningProblem, cut: Cut) -> object:
        problem = scheduling_problem(graph, costs, cut)
        trees, general = PAPERS_SOLVERS
        try:
            return problem and solve(problem.instance, trees)
        except InputError:
            return problem and solve(problem.instance, general)

    jobs: Mapping[str, tuple[Callable[[], object], int]] = {
        "paper": (order(papers), _REPEATS),
        "opss": (order(best), _REPEATS),
        "joint": (lambda: search(situation), _SEARCHES),
    }
    return {key: [_seconds(job) for _ in range(count)] for key, (job, count) in jobs.items()}


def _seconds(job: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    job()
    return time.perf_counter() - start_s
