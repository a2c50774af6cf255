"""Run one act: profile, plan, try every scheme for real, and say what came out."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import LOSSLESS, EncodingPolicy, parse_allowed
from offload.costs.link import Link
from offload.costs.profile import Profile
from offload.errors import OffloadError
from offload.graph.load import load_model
from offload.planning.cut import cut_after
from offload.planning.plan import Plan
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload.report.gantt import gantt_svg, gantt_text
from offload.report.page import Section
from offload.units import format_bytes, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.choose_encodings import EncodingSelector
from offload_runtimes.measure.encoding_sizes import cached_encodings
from offload_runtimes.measure.plan_trial import MachinePair, PlanTrial, try_plans
from offload_runtimes.measure.profile import measure, optimized_model

from offload_cli.demo.scenarios import Scenario
from offload_cli.output import Output

# One thread stands for a small device, and leaves the other core to the server.
OPTIONS = EngineOptions(threads=1)
TOLERANCE = 1e-4
LOSSY_TOLERANCE = 0.02
LOSSLESS_ROW, LOSSY_ROW = "lossless", "lossy"
COLUMNS = ("scheme", ">predicted", ">measured", ">spread", ">sent", "answer")


@dataclass(frozen=True)
class ScenarioResult:
    """What an act came to.

    Attributes:
        act: what was run.
        layers: number of layers found.
        chosen: the plan that `auto` chooses.
        trials: every scheme, tried.
        winner: label of the fastest as measured.
        sentence: which plan wins and why.
    """

    act: Scenario
    layers: int
    chosen: Plan
    trials: tuple[PlanTrial, ...]
    winner: str
    sentence: str


def perform(
    act: Scenario, link: Link, slowdown: float, repeats: int, progress: Progress
) -> ScenarioResult:
    """Try every scheme of an act on the emulated device and link.

    Raises:
        OffloadError: two schemes disagree about the answer.
    """
    with tempfile.TemporaryDirectory(prefix="offload-demo-") as name:
        folder = Path(name)
        progress("building the model")
        act.write(folder / "model.onnx")
        model = load_model(folder / "model.onnx")
        keep = frozenset(filter(None, (act.float_input,)))
        subject = optimized_model(model, folder, None, keep)
        profile = measure(subject, OPTIONS, feeds=act.feeds, progress=progress)
        situation = PlanningProblem.of(subject.graph, profile.scaled(slowdown), profile, link)
        bench = MachinePair(model, subject.graph, act.feeds, link, slowdown, OPTIONS, folder)
        plans = _plans(act, situation) | _encoded(act, bench, situation, profile, progress)
        trials = _tried(bench, plans, repeats, progress)
        _check_answers(act, trials)
        chosen = plans[LOSSLESS_ROW]
    winner = min(trials, key=lambda trial: trial.latency_s)
    return ScenarioResult(
        act,
        len(subject.graph.layers),
        chosen,
        trials,
        winner.label,
        _sentence(chosen, winner),
    )


def _tried(
    bench: MachinePair, plans: dict[str, Plan], repeats: int, progress: Progress
) -> tuple[PlanTrial, ...]:
    """Plans that come to the same program are tried once, under the simplest one's name."""
    first: dict[object, str] = {}
    twins: dict[str, list[str]] = {}
    for label, plan in plans.items():
        twins.setdefault(first.setdefault(plan.program, label), []).append(label)
    distinct = {labels[0]: plans[labels[0]] for labels in twins.values()}
    tried = try_plans(bench, distinct, repeats, progress)
    return tuple(replace(trial, label=" = ".join(twins[trial.label])) for trial in tried)


def _plans(act: Scenario, situation: PlanningProblem) -> dict[str, Plan]:
    plans = {"LO": make_plan(situation, "local")}
    if act.float_input:
        cut = cut_after(situation.graph, [act.float_input])
        plans["CO fp32"] = make_plan(situation, "partition", cut)
        plans["CO raw"] = make_plan(situation, "cloud")
    else:
        plans["CO"] = make_plan(situation, "cloud")
    plans["Neurosurgeon"] = make_plan(situation, "neurosurgeon")
    plans["PO"] = make_plan(situation, "partition")
    plans["OPSS"] = make_plan(situation, "opss")
    plans["joint"] = make_plan(situation, "joint")
    return plans


def _encoded(
    act: Scenario,
    bench: MachinePair,
    situation: PlanningProblem,
    profile: Profile,
    progress: Progress,
) -> dict[str, Plan]:
    """The best plan with fewer bytes: no bit lost, and as much as the tolerance allows."""
    calibration = Calibration(act.calibration or (act.feeds,))
    every = parse_allowed("any")
    catalogue = cached_encodings(
        bench.model, bench.graph, calibration, every, bench.options, None, progress
    )
    device = profile.scaled(bench.slowdown)

    def planned(allowed: EncodingTable | None) -> Plan:
        asked = PlanningProblem.of(
            bench.graph, device, profile, bench.link, situation.constraints, allowed
        )
        return make_plan(asked)

    allowance = EncodingPolicy(every, LOSSY_TOLERANCE)
    chooser = EncodingSelector(bench.model, bench.graph, allowance, bench.options)
    return {
        LOSSLESS_ROW: planned(catalogue.allowing(LOSSLESS)),
        LOSSY_ROW: chooser.within(planned, calibration, catalogue),
    }


def _check_answers(act: Scenario, trials: tuple[PlanTrial, ...]) -> None:
    exact = [trial for trial in trials if trial.plan.is_lossless]
    answers = {act.answer(trial.outputs) for trial in exact}
    worst = max(trial.difference for trial in exact)
    if len(answers) > 1 or worst > TOLERANCE:
        raise OffloadError(f"the schemes disagree ({worst:.1e} apart): {sorted(answers)}")


def _sentence(chosen: Plan, winner: PlanTrial) -> str:
    planned = chosen.reason.rstrip(".")
    if chosen.program == winner.plan.program:
        return f"{planned}. Measured, it wins too, at {format_s(winner.latency_s)}."
    return f"{planned}. Measured, {winner.label} was faster: {format_s(winner.latency_s)}."


def tell(output: Output, scene: ScenarioResult) -> None:
    """Print a scene for a person: table, verdict, and where the time went."""
    output.text(f"\n{scene.act.title}: {scene.layers} layers")
    output.table(COLUMNS, rows(scene))
    output.text(_agreement(scene))
    output.text(scene.sentence)
    for trial in scene.trials:
        if trial.label == scene.winner:
            output.text()
            output.text(gantt_text({f"{trial.label}, measured": trial.timeline}, 100))


def _agreement(scene: ScenarioResult) -> str:
    exact = [trial for trial in scene.trials if trial.plan.is_lossless]
    worst = max(trial.difference for trial in exact)
    kept = (
        f"All that lose nothing give the same answer (largest difference {worst:.1e} of the range)."
    )
    lossy = [trial for trial in scene.trials if not trial.plan.is_lossless]
    answers = {scene.act.answer(trial.outputs) for trial in exact}
    for trial in lossy:
        same = "the same" if scene.act.answer(trial.outputs) in answers else "another"
        how = ", ".join(f"{send.tensor} as {send.encoding}" for send in trial.plan.uploads)
        kept += f" {trial.label}, sending {how}, gives {same} answer ({trial.difference:.1e})."
    return kept


def rows(scene: ScenarioResult) -> list[tuple[str, ...]]:
    """One row a scheme."""
    return [
        (
            trial.label,
            format_s(trial.plan.latency_s),
            format_s(trial.latency_s),
            f"{format_s(min(trial.seconds))} .. {format_s(max(trial.seconds))}",
            format_bytes(trial.upload_bytes),
            scene.act.answer(trial.outputs),
        )
        for trial in scene.trials
    ]


def section(scene: ScenarioResult) -> Section:
    """A scene as a part of the HTML page."""
    labels = [trial.label for trial in scene.trials]
    return Section(
        scene.act.title,
        scene.sentence,
        tuple(column.lstrip(">") for column in COLUMNS),
        rows(scene),
        labels.index(scene.winner),
        tuple(chart(scene, trial) for trial in scene.trials),
    )


def chart(scene: ScenarioResult, trial: PlanTrial) -> str:
    """Predicted over measured, as an SVG document."""
    shown = {"predicted": trial.plan.timeline, "measured": trial.timeline}
    return gantt_svg(shown, f"{scene.act.title}: {trial.label}")
