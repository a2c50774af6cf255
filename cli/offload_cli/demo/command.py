"""`offload demo`: predict and measure every scheme on real models and inputs."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import LOSSLESS, EncodingPolicy, parse_allowed
from offload.costs.link import Link, parse_link
from offload.errors import OffloadError
from offload.files import write_text
from offload.graph.load import load_model
from offload.planning.cut import cut_after
from offload.planning.plan import Plan
from offload.planning.planner import make_plan
from offload.planning.problem import PlanningProblem
from offload.report.gantt import chrome_trace, gantt_svg, gantt_text
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
        layers: number of layers of the model.
        chosen: the plan that `auto` chooses.
        trials: the runs of every scheme.
    """

    scenario: Scenario
    layers: int
    chosen: Plan
    trials: tuple[PlanTrial, ...]

    @property
    def fastest(self) -> PlanTrial:
        """The scheme that was measured to be the fastest."""
        return min(self.trials, key=lambda trial: trial.latency_s)

    @property
    def sentence(self) -> str:
        """The chosen plan's reason, and whether it was the fastest."""
        fastest = self.fastest
        measured = format_s(fastest.latency_s)
        verdict = (
            f"Measured, it wins too, at {measured}."
            if self.chosen.program == fastest.plan.program
            else f"Measured, {fastest.label} was faster: {measured}."
        )
        return f"{self.chosen.reason.rstrip('.')}. {verdict}"

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
            "layers": self.layers,
            "chosen": self.chosen.scheme,
            "reason": self.sentence,
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
        machines = MachinePair(model, graph, scenario.feeds, link, slowdown, OPTIONS, folder)
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
    result = ScenarioResult(scenario, len(graph.layers), plans["lossless"], trials)
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
    """Print a result: table, comparison of the answers, verdict and the fastest timeline."""
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
    output.text(f"\n{result.scenario.title}: {result.layers} layers")
    output.table(COLUMNS, result.rows)
    output.text(agreement)
    output.text(result.sentence)
    fastest = result.fastest
    output.text()
    output.text(gantt_text({f"{fastest.label}, measured": fastest.timeline}, 100))


def write_files(folder: Path, results: list[ScenarioResult]) -> Path:
    """Write a page with a Gantt chart per scheme, and the charts and traces as files of their own.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, result in enumerate(results):
        title, charts, timelines = result.scenario.title, [], {}
        for trial in result.trials:
            predicted, measured = trial.plan.timeline, trial.timeline
            chart = gantt_svg(
                {"predicted": predicted, "measured": measured}, f"{title}: {trial.label}"
            )
            name = trial.label.partition(" = ")[0].lower().replace(" ", "-")
            write_text(folder / f"scene-{number}-{name}.svg", chart)
            charts.append(chart)
            timelines[f"{trial.label} predicted"] = predicted
            timelines[f"{trial.label} measured"] = measured
        write_text(folder / f"scene-{number}.trace.json", json.dumps(chrome_trace(timelines)))
        columns = tuple(column.lstrip(">") for column in COLUMNS)
        best = [trial.label for trial in result.trials].index(result.fastest.label)
        sections.append(Section(title, result.sentence, columns, result.rows, best, charts))
    introduction = (
        "One inference, split between an emulated small device and a server by every scheme:"
        " predicted and measured in this run."
    )
    written = folder / "index.html"
    write_text(written, page("offload demo", introduction, sections))
    return written
