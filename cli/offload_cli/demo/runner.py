"""Run a scenario of the demo: profile, plan and run every scheme, then show the results."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import LOSSLESS, EncodingPolicy, parse_allowed
from offload.costs.link import Link
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

# One thread, as on a small device; the other core is left to the server.
OPTIONS = EngineOptions(threads=1)
TOLERANCE = 1e-4
LOSSY_TOLERANCE = 0.02
LOSSLESS_ROW, LOSSY_ROW = "lossless", "lossy"
COLUMNS = ("scheme", ">predicted", ">measured", ">spread", ">sent", "answer")


@dataclass(frozen=True)
class ScenarioResult:
    """The results of a scenario.

    Attributes:
        scenario: what was run.
        layers: number of layers of the model.
        chosen: the plan that `auto` chooses.
        trials: the runs of every scheme.
        winner: the label of the fastest, as measured.
        sentence: the chosen plan's reason, and whether it was the fastest.
    """

    scenario: Scenario
    layers: int
    chosen: Plan
    trials: tuple[PlanTrial, ...]
    winner: str
    sentence: str


def run_scenario(
    scenario: Scenario, link: Link, slowdown: float, repeats: int, progress: Progress
) -> ScenarioResult:
    """Run every scheme of a scenario on the emulated device and link.

    Raises:
        OffloadError: two lossless schemes give different answers.
    """
    with tempfile.TemporaryDirectory(prefix="offload-demo-") as name:
        folder = Path(name)
        progress("building the model")
        scenario.write(folder / "model.onnx")
        model = load_model(folder / "model.onnx")
        keep = frozenset(filter(None, (scenario.float_input,)))
        optimized = optimized_model(model, folder, None, keep)
        graph = optimized.graph
        profile = measure(optimized, OPTIONS, feeds=scenario.feeds, progress=progress)
        device = profile.scaled(slowdown)
        problem = PlanningProblem.of(graph, device, profile, link)
        machines = MachinePair(model, graph, scenario.feeds, link, slowdown, OPTIONS, folder)
        plans = scheme_plans(scenario, problem)

        # The best plans with fewer bytes: without loss, and with loss within the tolerance.
        def plan_with(encodings: EncodingTable | None) -> Plan:
            return make_plan(
                PlanningProblem.of(graph, device, profile, link, problem.constraints, encodings)
            )

        calibration = Calibration(scenario.calibration or (scenario.feeds,))
        allowed = parse_allowed("any")
        encodings = cached_encodings(model, graph, calibration, allowed, OPTIONS, None, progress)
        policy = EncodingPolicy(allowed, LOSSY_TOLERANCE)
        selector = EncodingSelector(model, graph, policy, OPTIONS)
        plans[LOSSLESS_ROW] = plan_with(encodings.allowing(LOSSLESS))
        plans[LOSSY_ROW] = selector.within(plan_with, calibration, encodings)

        # Plans with the same program run once, labelled "CO = PO".
        labels: dict[object, list[str]] = {}
        for label, plan in plans.items():
            labels.setdefault(plan.program, []).append(label)
        distinct = {" = ".join(same): plans[same[0]] for same in labels.values()}
        trials = tuple(try_plans(machines, distinct, repeats, progress))
    exact = [trial for trial in trials if trial.plan.is_lossless]
    answers = {scenario.answer(trial.outputs) for trial in exact}
    worst = max(trial.difference for trial in exact)
    if len(answers) > 1 or worst > TOLERANCE:
        raise OffloadError(f"the schemes disagree ({worst:.1e} apart): {sorted(answers)}")
    chosen = plans[LOSSLESS_ROW]
    winner = min(trials, key=lambda trial: trial.latency_s)
    measured = format_s(winner.latency_s)
    verdict = (
        f"Measured, it wins too, at {measured}."
        if chosen.program == winner.plan.program
        else f"Measured, {winner.label} was faster: {measured}."
    )
    sentence = f"{chosen.reason.rstrip('.')}. {verdict}"
    return ScenarioResult(scenario, len(graph.layers), chosen, trials, winner.label, sentence)


def scheme_plans(scenario: Scenario, problem: PlanningProblem) -> dict[str, Plan]:
    """A plan for every scheme, all tensors raw, by its label in the table."""
    plans = {"LO": make_plan(problem, "local")}
    if scenario.float_input:
        cut = cut_after(problem.graph, [scenario.float_input])
        plans["CO fp32"] = make_plan(problem, "partition", cut)
        plans["CO raw"] = make_plan(problem, "cloud")
    else:
        plans["CO"] = make_plan(problem, "cloud")
    plans["Neurosurgeon"] = make_plan(problem, "neurosurgeon")
    plans["PO"] = make_plan(problem, "partition")
    plans["OPSS"] = make_plan(problem, "opss")
    plans["joint"] = make_plan(problem, "joint")
    return plans


def show(output: Output, result: ScenarioResult) -> None:
    """Print a result: table, comparison of the answers, verdict and the winner's timeline."""
    answer = result.scenario.answer
    exact = [trial for trial in result.trials if trial.plan.is_lossless]
    worst = max(trial.difference for trial in exact)
    answers = {answer(trial.outputs) for trial in exact}
    agreement = (
        f"All lossless schemes give the same answer (largest difference {worst:.1e} of the range)."
    )
    for trial in result.trials:
        if not trial.plan.is_lossless:
            same = "the same" if answer(trial.outputs) in answers else "another"
            sends = ", ".join(f"{send.tensor} as {send.encoding}" for send in trial.plan.uploads)
            agreement += (
                f" {trial.label}, sending {sends}, gives {same} answer ({trial.difference:.1e})."
            )
    output.text(f"\n{result.scenario.title}: {result.layers} layers")
    output.table(COLUMNS, rows(result))
    output.text(agreement)
    output.text(result.sentence)
    for trial in result.trials:
        if trial.label == result.winner:
            output.text()
            output.text(gantt_text({f"{trial.label}, measured": trial.timeline}, 100))


def rows(result: ScenarioResult) -> list[tuple[str, ...]]:
    """One row per scheme."""
    return [
        (
            trial.label,
            format_s(trial.plan.latency_s),
            format_s(trial.latency_s),
            f"{format_s(min(trial.seconds))} .. {format_s(max(trial.seconds))}",
            format_bytes(trial.upload_bytes),
            result.scenario.answer(trial.outputs),
        )
        for trial in result.trials
    ]


def section(result: ScenarioResult) -> Section:
    """A result as a part of the HTML page, with a Gantt chart per scheme."""
    labels = [trial.label for trial in result.trials]
    title = result.scenario.title
    return Section(
        title,
        result.sentence,
        tuple(column.lstrip(">") for column in COLUMNS),
        rows(result),
        labels.index(result.winner),
        tuple(
            gantt_svg(
                {"predicted": trial.plan.timeline, "measured": trial.timeline},
                f"{title}: {trial.label}",
            )
            for trial in result.trials
        ),
    )
