"""Subjects of the benchmark: models, their inputs and profiles, and a plan for each scheme."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
# The wiring of the first 24 that gains most when the input stays on the device
# (`make bench-own-cut`).
_PRIVATE_WIRING = 8
_RUNS = 10
# Other work on the machine only makes layers slower: the quickest of three profiles is used.
_PROFILES = 3


@dataclass(frozen=True)
class Study:
    """A model to measure.

    Attributes:
        name: its name in tables.
        build: builds the model.
        inside: force a cut inside the model, through several tensors, even if another is better.
        keep_input: never send the input, as with `offload split --keep-input`.
    """

    name: str
    build: zoo.Builder
    inside: bool = False
    keep_input: bool = False


_OWN_STUDIES = (
    Study("multi_stream", partial(multi_stream.build, hidden=_LIGHT_HEADS)),
    Study("randwire_inside", zoo.ZOO["randwire"].build, inside=True),
    Study("randwire_private", partial(randwire.build, seed=_PRIVATE_WIRING), keep_input=True),
)
STUDIES: Mapping[str, Study] = {
    **{name: Study(name, model.build) for name, model in zoo.ZOO.items()},
    **{study.name: study for study in _OWN_STUDIES},
}


@dataclass(frozen=True)
class Variant:
    """A model with float input, as built, or with a camera's bytes as input.

    Attributes:
        model: loaded from its file.
        graph: its layers.
        device: the device's profile.
        server: the server's profile.
        feeds: .npz of its inputs.
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
        study: the model and how it is cut.
        floats: the model with float input, as built.
        camera: the model with one uint8 image as input; None if its input is not one image.
        expected: .npz of the outputs that both must give.
    """

    study: Study
    floats: Variant
    camera: Variant | None
    expected: Path


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        InputError: there is no such study.
    """
    if name not in STUDIES:
        raise InputError(f"no model is called {name!r}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]


def prepare(
    study: Study, folder: Path, slowdown: float, profiles: Path | None, progress: Progress
) -> PreparedStudy:
    """Build a model and its inputs in a folder, and profile it.

    Args:
        study: which model.
        folder: gets the files.
        slowdown: how many times slower than this machine the device is.
        profiles: folder of `MODEL.device.json` and `MODEL.server.json`; what is missing there is
            measured here.
        progress: called with a phrase before each step.

    Raises:
        InputError: a profile is of another model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress(f"{study.name}: building")
    proto = study.build()
    takes_image = list(image.input_shapes(proto)) == ["image"]
    has_camera = takes_image and not study.inside and not study.keep_input
    if has_camera:
        proto = image.rename_input(proto, "image", _FLOATS)
    picture, feeds = _seeded_inputs(image.input_shapes(proto), has_camera)

    def saved_profile(side: str) -> Profile | None:
        path = profiles / f"{study.name}.{side}.json" if profiles else None
        return load_profile(path) if path and path.is_file() else None

    def variant(kind: str, feeds: Mapping[str, Array]) -> Variant:
        """Load and profile `KIND.onnx`, and save its inputs as `KIND.npz`."""
        device, server = saved_profile("device"), saved_profile("server")
        progress(f"{study.name}: measuring its layers ({kind})")
        scratch, arrays = folder / kind, folder / f"{kind}.npz"
        scratch.mkdir(exist_ok=True)
        _save(arrays, feeds)
        model = load_model(folder / f"{kind}.onnx")
        optimized = optimized_model(model, scratch)
        if server is None or device is None:
            profiles_here = [
                measure(optimized, OPTIONS, feeds=feeds, runs=_RUNS) for _ in range(_PROFILES)
            ]
            quickest = min(profiles_here, key=lambda profile: profile.whole_s)
            server, device = server or quickest, device or quickest.scaled(slowdown)
        return Variant(model, optimized.graph, device, server, arrays)

    zoo.save(proto, folder / "floats.onnx")
    floats = variant("floats", feeds)
    camera = None
    if picture is not None:
        _, height, width, _ = picture.shape
        raw = image.with_image_input(proto, _FLOATS, height, width, _MEAN, _STD)
        zoo.save(raw, folder / "camera.onnx")
        camera = variant("camera", {"image": picture})
    assert floats.model.path is not None
    engine = load(floats.model.path, OPTIONS)
    names = [value.name for value in engine.outputs]
    expected = folder / "expected.npz"
    _save(expected, dict(zip(names, engine.run(names, feeds), strict=True)))
    return PreparedStudy(study, floats, camera, expected)


def _seeded_inputs(
    shapes: Mapping[str, tuple[int, ...]], has_camera: bool
) -> tuple[Array | None, dict[str, Array]]:
    """A seeded image and its normalised floats; random floats if the input is no picture."""
    random = np.random.default_rng(0)
    if not has_camera:
        return None, {n: random.random(shape, dtype=np.float32) for n, shape in shapes.items()}
    _, _, height, width = shapes[_FLOATS]
    picture = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    floats = (picture / 255.0 - np.array(_MEAN)) / np.array(_STD)
    return picture, {_FLOATS: np.ascontiguousarray(floats.astype(np.float32).transpose(0, 3, 1, 2))}


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy takes any keyword


# The paper's solvers: for trees, and for all other graphs.
_TREE_SOLVER, _GENERAL_SOLVER = "tree-merge", "levels"
_REPEATS = 10
_SEARCHES = 3


@dataclass(frozen=True)
class PlannedScheme:
    """One scheme as it will run.

    Attributes:
        variant: the model it runs.
        plan: the plan, with its prediction.
        picked: the planner chooses it.
    """

    variant: Variant
    plan: Plan
    picked: bool = False

    @property
    def program(self) -> object:
        """Equal for schemes that run the same; the engine orders the layers of a segment."""
        segments = tuple((s.id, s.side, frozenset(s.layers)) for s in self.plan.segments)
        return self.variant.model.path, segments, self.plan.steps


def plans_of(prepared: PreparedStudy, link: Link) -> dict[str, PlannedScheme]:
    """A plan for every scheme, by the scheme's key."""
    problem = planning_problem(prepared, link)
    best = None
    if prepared.study.inside:
        cut = inner_cut(problem)
        estimates = {
            "local": estimate(problem, Scheme.LOCAL, all_local(problem.graph)),
            "partition": estimate(problem, Scheme.PARTITION, cut),
            "opss": estimate(problem, Scheme.OPSS, cut),
        }
        compared = tuple(estimates.values())
    else:
        compared = compare(problem)
        best = simplest_within_margin(compared, choose(problem, compared))
        estimates = {candidate.scheme.value: candidate for candidate in compared}
        cut = estimates[Scheme.PARTITION].cut
    estimates["fifo"] = estimate(problem, Scheme.OPSS, cut, "fifo")
    estimates["paper"] = _paper_estimate(problem, cut)
    plans = {
        key: PlannedScheme(
            prepared.floats, plan_of(problem, compared, candidate), candidate is best
        )
        for key, candidate in estimates.items()
    }
    if camera := prepared.camera:
        problem = PlanningProblem.of(camera.graph, camera.device, camera.server, link)
        compared = compare(problem)
        cloud = next(candidate for candidate in compared if candidate.scheme is Scheme.CLOUD)
        best = simplest_within_margin(compared, choose(problem, compared))
        cloud_plan = plan_of(problem, compared, cloud)
        plans["cloud-raw"] = PlannedScheme(camera, cloud_plan, picked=cloud is best)
        plans["auto-raw"] = PlannedScheme(camera, plan_of(problem, compared, best), picked=True)
    return plans


def planning_problem(prepared: PreparedStudy, link: Link) -> PlanningProblem:
    """The planning problem of the study's model with float input, under the study's limits."""
    floats = prepared.floats
    limits = Constraints(keep_input=prepared.study.keep_input)
    return PlanningProblem.of(floats.graph, floats.device, floats.server, link, limits)


def inner_cut(problem: PlanningProblem, least: int = 3) -> Cut:
    """The cut after a prefix of the layers, through several tensors, where overlap gains most.

    Raises:
        InputError: the model has no cut of `least` tensors.
    """
    graph = problem.graph
    prefixes = (cut_at(graph, frozenset(range(end))) for end in range(1, len(graph.layers)))
    cuts = [cut for cut in prefixes if len(cut.uploads) >= least]
    if not cuts:
        raise InputError(f"{graph.name} has no cut of {least} tensors")

    def overlap_gain(cut: Cut) -> float:
        serial = estimate(problem, Scheme.PARTITION, cut)
        return serial.latency_s / estimate(problem, Scheme.OPSS, cut, "fifo").latency_s

    return max(cuts, key=overlap_gain)


def _paper_estimate(problem: PlanningProblem, cut: Cut) -> SchemeEstimate:
    """A cut ordered by the paper's solver for trees, otherwise by that for all graphs."""
    try:
        return estimate(problem, Scheme.OPSS, cut, _TREE_SOLVER)
    except InputError:
        return estimate(problem, Scheme.OPSS, cut, _GENERAL_SOLVER)


def overheads(prepared: PreparedStudy, link: Link) -> dict[str, tuple[float, ...]]:
    """Seconds of planning, by scheme: choosing cut and order, several times each."""
    problem = planning_problem(prepared, link)

    def order(solver: str, fallback: str = "") -> None:
        """Choose PO's cut, then order its layers; the fallback is for graphs it refuses."""
        jobs = scheduling_problem(problem.graph, problem.costs, serial_cut(problem))
        if jobs is None:
            return
        try:
            solve(jobs.instance, solver)
        except InputError:
            if not fallback:
                raise
            solve(jobs.instance, fallback)

    seconds: dict[str, tuple[float, ...]] = {}
    for key, action, count in (
        ("paper", partial(order, _TREE_SOLVER, _GENERAL_SOLVER), _REPEATS),
        ("opss", partial(order, "optimal"), _REPEATS),
        ("joint", partial(search, problem), _SEARCHES),
    ):
        times = []
        for _ in range(count):
            start_s = time.perf_counter()
            action()
            times.append(time.perf_counter() - start_s)
        seconds[key] = tuple(times)
    return seconds
