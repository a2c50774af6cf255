"""`offload demo`: predict and measure every scheme on real models and inputs."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from offload.bundle.layers import TimedGraph
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import LOSSLESS, EncodingPolicy, parse_allowed
from offload.costs.link import Link, parse_link
from offload.errors import OffloadError
from offload.files import write_text
from offload.graph.load import load_model
from offload.planning.cut import cut_after
from offload.planning.plan import Plan, Side
from offload.planning.plan_set import PlanSet
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload.report.charts import SchemeTimes, pairs_svg
from offload.report.cut import OVERVIEW, cut_figure, cut_svg
from offload.report.gantt import chrome_trace, gantt_svg, gantt_text, named
from offload.report.page import Section, page
from offload.units import format_bytes, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import Progress
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.choose_encodings import EncodingSelector
from offload_runtimes.measure.encoding_sizes import cached_encodings
from offload_runtimes.measure.plan_trial import MachinePair, PlanTrial, try_plans
from offload_runtimes.measure.profile import measure, optimized_model

from offload_cli.demo.scenarios import Scenario, scenarios
from offload_cli.options import FormatOption
from offload_cli.output import Format, Output

# One thread, as on a small device; the other core is left to the server.
OPTIONS = EngineOptions(threads=1)
TOLERANCE = 1e-4
LOSSY_TOLERANCE = 0.02
# Two measured times within this factor are equal; predictions of LO should be this close.
NOISE = 1.05
PREDICTED_WITHIN = 0.1
JPEG = {"CO jpeg 90": "jpeg", "CO jpeg 95": "jpeg95"}
COLUMNS = ("scheme", ">predicted", ">measured", ">spread", ">sent", "answer")


def demo(
    text: Annotated[str, typer.Option(help="Render and read this line of text.")] = (
        "Split inference 42"
    ),
    link: Annotated[
        str, typer.Option(metavar="LINK", help="Emulate this link; default: each scenario's own.")
    ] = "",
    slowdown: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="FACTOR",
            help="Emulate a device that is FACTOR times slower; 0: each scenario's own.",
        ),
    ] = 0.0,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Run N times; the median is reported.")
    ] = 5,
    folder: Annotated[
        Path, typer.Option("-o", "--output", help="Write charts, traces and the page here.")
    ] = Path("out/demo"),
    form: FormatOption = Format.TEXT,
) -> None:
    """Predict and measure every scheme on real models and inputs.

    LO runs all layers on the device, CO all on the server. Neurosurgeon cuts at one tensor, PO
    anywhere without overlap, OPSS overlaps uploads with computation, joint chooses cut and order
    together; all send raw tensors. CO jpeg sends the picture as jpeg of quality 90 or 95, as
    applications do. Lossless may compress tensors; lossy may also send float16 or uint8, within
    a tolerance on the outputs. Schemes with the same program share a row.

    The device is this machine made slower, the link is emulated, the server is real gRPC on
    loopback. No root is needed.

    Example: `offload demo --link 3g --slowdown 10`
    """
    output = Output(form)
    results = []
    for scenario in scenarios(text):
        chosen, factor = parse_link(link or scenario.link), slowdown or scenario.slowdown
        output.remark(f"device: this machine {factor:g}x slower; link: {chosen.describe()}")
        with output.steps() as progress:
            result = run_scenario(scenario, chosen, factor, repeats, progress)
        show(output, result)
        results.append(result)
    written = write_files(folder, results)
    output.text(f"\nCharts, traces and a page to look at: {written}")
    if output.is_json:
        output.result([result.to_json() for result in results])


@dataclass(frozen=True)
class ScenarioResult:
    """The results of a scenario.

    Attributes:
        scenario: what was run.
        model: the layers of the model, with their seconds on both sides.
        chosen: the plan that `auto` chooses.
        trials: the runs of every scheme.
    """

    scenario: Scenario
    model: TimedGraph
    chosen: Plan
    trials: tuple[PlanTrial, ...]

    @property
    def fastest(self) -> PlanTrial:
        """The scheme that was measured to be the fastest."""
        return min(self.trials, key=lambda trial: trial.latency_s)

    @property
    def picked(self) -> PlanTrial:
        """The runs of the plan that `auto` chooses."""
        return next(t for t in self.trials if t.plan.program == self.chosen.program)

    @property
    def sentence(self) -> str:
        """Which scheme the planner picks, how fast it is, and which one is the fastest."""
        picked, fastest, local = self.picked, self.fastest, self.local
        text = f"The planner picks {picked.label}: {format_s(picked.plan.latency_s)} predicted"
        text += f", {format_s(picked.latency_s)} measured"
        if picked is not local:
            ratio = local.latency_s / picked.latency_s
            compared = (
                f"{ratio:.1f}x faster than" if ratio >= 1 else f"{1 / ratio:.1f}x slower than"
            )
            text += f", {compared} {local.label} ({format_s(local.latency_s)})"
        if picked is fastest:
            return f"{text}. No other scheme is faster."
        changes = "" if fastest.plan.is_lossless else ", which changes the outputs slightly,"
        measured = format_s(fastest.latency_s)
        if picked.latency_s <= fastest.latency_s * NOISE:
            return f"{text}. {fastest.label}{changes} is as fast: {measured}."
        return f"{text}. {fastest.label}{changes} is the fastest: {measured}."

    @property
    def local(self) -> PlanTrial:
        """The runs with all layers on the device."""
        return next(trial for trial in self.trials if trial.plan.is_local)

    @property
    def off_sentence(self) -> str:
        """Why the device alone took another time than predicted; empty: within 10 %."""
        local = self.local
        off = local.latency_s / local.plan.latency_s - 1
        if abs(off) <= PREDICTED_WITHIN:
            return ""
        least, most = format_s(min(local.seconds)), format_s(max(local.seconds))
        return (
            f"{local.label} took {abs(off):.0%} {'longer' if off > 0 else 'less'} than predicted"
            f" (runs from {least} to {most}): this machine computed at another speed during the"
            " runs than while the model was profiled, often because of other work. Run the demo"
            " again on an idle machine."
        )

    @property
    def lossless_answers(self) -> set[str]:
        """The answers of all lossless schemes."""
        trials = (trial for trial in self.trials if trial.plan.is_lossless)
        return {self.scenario.answer(trial.outputs) for trial in trials}

    @property
    def lossless_difference(self) -> float:
        """The largest difference of a lossless scheme's outputs from the whole model's."""
        return max(trial.difference for trial in self.trials if trial.plan.is_lossless)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """One table row per scheme."""
        return [
            (
                trial.label,
                format_s(trial.plan.latency_s),
                format_s(trial.latency_s),
                f"{format_s(min(trial.seconds))} .. {format_s(max(trial.seconds))}",
                format_bytes(trial.upload_bytes),
                self.scenario.answer(trial.outputs),
            )
            for trial in self.trials
        ]

    def to_json(self) -> dict[str, object]:
        """The result as JSON."""
        return {
            "title": self.scenario.title,
            "layers": len(self.model.graph.layers),
            "chosen": self.chosen.scheme,
            "reason": self.chosen.reason,
            "sentence": self.sentence,
            "schemes": [
                {
                    "label": trial.label,
                    "predicted_s": trial.plan.latency_s,
                    "measured_s": trial.latency_s,
                    "seconds": list(trial.seconds),
                    "upload_bytes": trial.upload_bytes,
                    "answer": self.scenario.answer(trial.outputs),
                    "difference": trial.difference,
                }
                for trial in self.trials
            ],
        }


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
        machines = MachinePair(
            model, graph, scenario.feeds, link, slowdown, OPTIONS, folder, profile.whole_s
        )
        plans = scheme_plans(scenario, problem)

        # The best plans with fewer bytes: without loss, and with loss within the tolerance.
        def plan_with(encodings: EncodingTable | None, scheme: str = "auto") -> Plan:
            return make_plan(
                PlanningProblem.of(graph, device, profile, link, problem.constraints, encodings),
                scheme,
            )

        calibration = Calibration(scenario.calibration or (scenario.feeds,))
        allowed = parse_allowed("any")
        measured = (
            (*allowed, *parse_allowed("jpeg,jpeg95")[1:]) if scenario.float_input else allowed
        )
        encodings = cached_encodings(model, graph, calibration, measured, OPTIONS, None, progress)
        for label, quality in JPEG.items() if scenario.float_input else ():
            only = encodings.allowing(parse_allowed(quality)[1:])
            plans[label] = plan_with(only, "cloud")
        encodings = encodings.allowing(allowed)
        policy = EncodingPolicy(allowed, LOSSY_TOLERANCE)
        selector = EncodingSelector(model, graph, policy, OPTIONS)
        plans["lossless"] = plan_with(encodings.allowing(LOSSLESS))
        plans["lossy"] = selector.within(plan_with, calibration, encodings)

        # Plans with the same program run once, labelled "CO = PO".
        labels: dict[object, list[str]] = {}
        for label, plan in plans.items():
            labels.setdefault(plan.program, []).append(label)
        distinct = {" = ".join(same): plans[same[0]] for same in labels.values()}
        trials = tuple(try_plans(machines, distinct, repeats, progress))
    seconds = {Side.DEVICE: device.costs_of(graph), Side.SERVER: profile.costs_of(graph)}
    result = ScenarioResult(scenario, TimedGraph(graph, seconds), plans["lossless"], trials)
    answers, difference = result.lossless_answers, result.lossless_difference
    if len(answers) > 1 or difference > TOLERANCE:
        raise OffloadError(f"the schemes disagree ({difference:.1e} apart): {sorted(answers)}")
    return result


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
    """Print a result: table, comparison of the answers, verdict and the picked timeline."""
    agreement = (
        "All lossless schemes give the same answer (largest difference"
        f" {result.lossless_difference:.1e} of the range)."
    )
    for trial in result.trials:
        if not trial.plan.is_lossless:
            is_same = result.scenario.answer(trial.outputs) in result.lossless_answers
            same = "the same" if is_same else "another"
            sends = ", ".join(f"{send.tensor} as {send.encoding}" for send in trial.plan.uploads)
            agreement += (
                f" {trial.label}, sending {sends}, gives {same} answer ({trial.difference:.1e})."
            )
    output.text(f"\n{result.scenario.title}: {len(result.model.graph.layers)} layers")
    output.table(COLUMNS, result.rows)
    output.text(agreement)
    output.text(f"{result.sentence} {result.off_sentence}".rstrip())
    output.text(f"Why: {result.chosen.reason}")
    picked = result.picked
    output.text()
    timeline = named(picked.timeline, picked.plan)
    output.text(gantt_text({f"{picked.label}, measured": timeline}, 100))


def write_files(folder: Path, results: list[ScenarioResult]) -> Path:
    """Write a page with all results, and its charts and traces as files of their own.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        section
        for number, result in enumerate(results)
        for section in _sections(folder, number, result)
    ]
    introduction = (
        "One inference, split between an emulated small device and a server by every scheme:"
        " predicted and measured in this run. LO runs all layers on the device, CO all on the"
        " server; Neurosurgeon, PO, OPSS and joint cut the model."
    )
    written = folder / "index.html"
    write_text(written, page("offload demo", introduction, sections))
    return written


def _sections(folder: Path, number: int, result: ScenarioResult) -> tuple[Section, Section]:
    """The sections of a scenario: its results, and its cut; charts and traces are written."""
    title, picked = result.scenario.title, result.picked
    end_s = max(
        timeline.makespan_s for t in result.trials for timeline in (t.plan.timeline, t.timeline)
    )
    charts, timelines = [], {}
    schemes, cut = f"scene-{number}-schemes.svg", f"scene-{number}-cut.svg"
    trace = f"scene-{number}.trace.json"
    links = {"chart of the schemes": schemes, "cut": cut}
    for trial in result.trials:
        predicted, measured = (named(t, trial.plan) for t in (trial.plan.timeline, trial.timeline))
        both = {"predicted": predicted, "measured": measured}
        chart = gantt_svg(both, f"{title}: {trial.label}", end_s)
        name = trial.label.partition(" = ")[0].lower().replace(" ", "-")
        file = f"scene-{number}-{name}.svg"
        write_text(folder / file, chart)
        links[f"timeline of {trial.label.partition(' = ')[0]}"] = file
        charts.append(chart)
        timelines[f"{trial.label} predicted"] = predicted
        timelines[f"{trial.label} measured"] = measured
    links["trace for Perfetto or chrome://tracing"] = trace
    write_text(folder / trace, json.dumps(chrome_trace(timelines)))
    write_text(folder / cut, cut_svg(result.model, result.chosen))
    times = [
        SchemeTimes(trial.label, trial.plan.latency_s, trial.seconds, trial is picked)
        for trial in result.trials
    ]
    overview = pairs_svg("Latency of every scheme", times)
    write_text(folder / schemes, overview)
    results = Section(
        title,
        f"{result.sentence} {result.off_sentence}".rstrip(),
        tuple(column.lstrip(">") for column in COLUMNS),
        result.rows,
        result.trials.index(picked),
        [overview],
        charts,
        "Timelines of all schemes, on one axis",
        links,
    )
    reason = result.chosen.reason[:1].upper() + result.chosen.reason[1:]
    figure = cut_figure(result.model, PlanSet((result.chosen,)), OVERVIEW)
    return results, Section("Where the planner cuts it", reason, charts=[figure])
