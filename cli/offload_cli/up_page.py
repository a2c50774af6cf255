"""The result of `offload up` as a sentence, a table and an HTML page."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from offload.bundle.bundle import open_bundle
from offload.bundle.layers import GRAPH, TimedGraph, read_layers
from offload.costs.profile import load_profile
from offload.errors import InputError
from offload.files import write_text
from offload.planning.plan import Side
from offload.planning.problem import PI_4B, Constraints
from offload.report.charts import SchemeTimes, pairs_svg
from offload.report.cut import OVERVIEW, cut_figure
from offload.report.gantt import chrome_trace, gantt_svg
from offload.report.page import Section, page
from offload.scheduling.timeline import Lane
from offload.units import format_bps, format_bytes, format_s
from offload_runtimes.deploy.scheme_bundles import SPLIT
from offload_runtimes.deploy.targets import TargetConfig
from offload_runtimes.deploy.trial import SchemeResult
from offload_runtimes.deploy.up import UpResult

COLUMNS = ("scheme", ">predicted", ">measured", ">spread", ">sent", ">layers on device", "answers")
_NAMES = {
    "LO": "all on the device",
    "CO": "all on the server",
    "CO float": "all on the server with floats",
    "CO bytes": "all on the server with the camera's bytes",
    "CO jpeg 90": "all on the server with jpeg of quality 90",
    "CO jpeg 95": "all on the server with jpeg of quality 95",
    "NS": "the best cut at one tensor",
    "PO": "the best cut without overlap",
    "OPSS": "that cut with overlap",
    "joint": "cut and order chosen together",
    SPLIT: "split",
}
# Smaller gains are within the noise of two measurements.
_WORTH = 1.1


def name_of(label: str) -> str:
    """The name of a scheme; for a label of several schemes, the name of the first."""
    return _NAMES[label.split(" = ")[0]]


def verdict(result: UpResult) -> str:
    """The gain over the device alone and the server alone, and whether it is worth it."""
    chosen = result.scheme(result.chosen)
    others = [s for s in result.schemes if s is not chosen and s.is_lossless]
    gains = [
        f"{s.median_s / chosen.median_s:.1f} times faster than {name_of(s.label)}"
        f" ({format_s(s.median_s)})"
        for s in others
        if s.label.startswith(("LO", "CO"))
    ]
    took = format_s(chosen.median_s)
    is_split = SPLIT in chosen.labels and not chosen.label.startswith(("LO", "CO"))
    if is_split:
        least = min((s.median_s for s in others), default=chosen.median_s) / chosen.median_s
        worth = "it is worth it" if least >= _WORTH else "it is hardly worth it"
        return f"Split, the model answers in {took}: {', '.join(gains)}; {worth}."
    is_fastest = chosen.median_s == min(s.median_s for s in result.schemes)
    text = f"{'Fastest' if is_fastest else 'Best'} is {name_of(chosen.label)}: {took}"
    best = [s for s in others if SPLIT in s.labels]
    text += f"; {', '.join(gains)}" if gains else ""
    if best:
        return f"{text}. The best split takes {format_s(best[0].median_s)}: not worth it here."
    return f"{text}. No split is predicted to be faster: not worth it here."


def lossy_note(result: UpResult) -> str:
    """Whether a scheme that changes the answers would be faster; empty if none would."""
    chosen = result.scheme(result.chosen)
    faster = [
        s for s in result.schemes if not s.is_lossless and s.median_s < chosen.median_s / _WORTH
    ]
    if not faster:
        return ""
    best = min(faster, key=lambda s: s.median_s)
    encodings = best.label.lower().removeprefix("co ").replace(" 90", "").replace(" ", "")
    name = name_of(best.label)
    return (
        f"{name.capitalize()} takes {format_s(best.median_s)}, but changes the answers:"
        f" {answers(best)}. If that is good enough with your trained weights and real inputs, allow"
        f" it with `--encoding {encodings} --tolerance {best.difference * 1.5:.2g}`."
    )


def answers(scheme: SchemeResult) -> str:
    """Whether a scheme's answers are the whole model's."""
    if scheme.is_lossless:
        return "equal" if scheme.difference <= 1e-3 else f"off by {scheme.difference:.2g}"
    text = f"off by {scheme.difference:.2g} at most"
    if scheme.same_answers is not None:
        text += f", same class for {scheme.same_answers} of {scheme.inputs}"
    return text


def rows(result: UpResult) -> list[tuple[str, ...]]:
    """One row a scheme, as `COLUMNS` names them."""
    return [
        (
            f"{s.label}{' *' if s.label == result.chosen else ''}",
            format_s(s.predicted_s) if s.predicted_s is not None else "",
            format_s(s.median_s),
            f"{format_s(min(s.latencies_s))} .. {format_s(max(s.latencies_s))}",
            format_bytes(s.upload_bytes),
            str(s.device_layers),
            answers(s),
        )
        for s in result.schemes
    ]


def command(result: UpResult, device: TargetConfig) -> str:
    """The command that runs the release on the device, on the sample input."""
    words = shlex.join(result.command)
    return words if device.ssh is None else f"{device.ssh.login} {words}"


def program(result: UpResult) -> str:
    """Three lines of Python for the device."""
    root = result.root
    if not result.address:
        session = f'session = open_session("{root}/current")'
        return (
            "from offload_runtimes import open_session\n"
            f"{session}\noutputs = session.run(None, {{NAME: ARRAY}})"
        )
    security = ""
    if result.secure:
        files = ", ".join(f'"{root}/certs/{name}"' for name in ("ca.pem", "own.pem", "own.key"))
        security = f", security=ClientSecurity({files})"
    return (
        "from offload_runtimes import ClientSecurity, OffloadSession\n"
        f'session = OffloadSession("{root}/current", "{result.address}"{security})\n'
        "outputs = session.run(None, {NAME: ARRAY})"
    )


def write_page(folder: Path, model: str, targets: Sequence[TargetConfig], result: UpResult) -> Path:
    """Write `index.html` with all results, and return its path."""
    device, server = targets
    chosen = result.scheme(result.chosen)
    times = [
        SchemeTimes(
            s.label if s.label == name_of(s.label) else f"{s.label}: {name_of(s.label)}",
            s.predicted_s,
            s.latencies_s,
            s is chosen,
        )
        for s in result.schemes
    ]
    overview = pairs_svg("Latency of every scheme", times)
    probed = result.link
    introduction = (
        f"{model} on {device.name} ({result.device[0]}, {format_s(result.device[1])} alone) and"
        f" {server.name} ({result.server[0]}, {format_s(result.server[1])} alone). Link:"
        f" {probed.link.describe()}, 10 % of messages slower than {format_bps(probed.slow_bps)},"
        f" round trip {format_s(probed.round_trip_s)}."
    )
    heads = tuple(column.lstrip(">") for column in COLUMNS)
    end_s = max(
        t.makespan_s for s in result.schemes for t in (s.predicted, s.measured) if t is not None
    )
    timelines = []
    for s in (chosen, *(s for s in result.schemes if s is not chosen)):
        both = {"predicted": s.predicted, "measured": s.measured}
        known = {name: timeline for name, timeline in both.items() if timeline is not None}
        timelines.append(gantt_svg(known, s.label, end_s))
    write_text(folder / "schemes.svg", overview)
    all_timelines = {
        f"{s.label}, {name}": timeline
        for s in result.schemes
        for name, timeline in (("predicted", s.predicted), ("measured", s.measured))
        if timeline is not None
    }
    write_text(folder / "up.trace.json", json.dumps(chrome_trace(all_timelines)))
    sections = [
        Section(
            "Result",
            " ".join(filter(None, (verdict(result), lossy_note(result)))),
            heads,
            rows(result),
            result.schemes.index(chosen),
            [overview],
            timelines,
            "Timelines of all schemes, on one axis",
            {
                "chart of the schemes": "schemes.svg",
                "trace for Perfetto or chrome://tracing": "up.trace.json",
            },
        ),
        Section(
            "The cut",
            f"{chosen.device_layers} layers run on {device.name}; it sends {_sent(chosen)}.",
            charts=_cut(folder, result.bundle),
        ),
        Section(
            "Where time, memory and energy go",
            "",
            (
                *("scheme", "device computes", "uplink", "server computes"),
                *("memory on the device", "energy, if it were a Pi 4B"),
            ),
            [
                (
                    s.label,
                    *(
                        format_s(s.measured.busy_s(lane))
                        for lane in (Lane.DEVICE, Lane.UPLINK, Lane.SERVER)
                    ),
                    format_bytes(s.memory_bytes) if s.memory_bytes else "",
                    f"{_energy_j(s):.2f} J",
                )
                for s in result.schemes
            ],
        ),
        Section(
            "How sure the figures are",
            " ".join((_certainty(result), *result.remarks)),
        ),
    ]
    path = folder / "index.html"
    write_text(path, page(f"{model}: {device.name} and {server.name}", introduction, sections))
    return path


def _cut(folder: Path, bundle: Path) -> list[str]:
    """The picture of the bundle's plans; none for a bundle of an older version."""
    if not (bundle / GRAPH).is_file():
        return []
    model = read_layers(bundle)
    if not model.seconds:
        with suppress(InputError):  # profiles of other layers: blocks without seconds
            profiles = {side: load_profile(folder / f"{side}.json") for side in Side}
            seconds = {side: profile.costs_of(model.graph) for side, profile in profiles.items()}
            model = TimedGraph(model.graph, seconds)
    return [cut_figure(model, open_bundle(bundle).plan_set, OVERVIEW)]


def _sent(scheme: SchemeResult) -> str:
    """The uploaded tensors with their encodings."""
    pairs = zip(scheme.cut, scheme.encodings, strict=True)
    return ", ".join(f"{tensor} ({encoding})" for tensor, encoding in pairs) or "nothing"


def _energy_j(scheme: SchemeResult) -> float:
    """The device's joules per inference by the power model of a Raspberry Pi 4B."""
    compute_s, upload_s = (scheme.measured.busy_s(lane) for lane in (Lane.DEVICE, Lane.UPLINK))
    return float(Constraints(power=PI_4B).energy(scheme.median_s, compute_s, upload_s))


def _certainty(result: UpResult) -> str:
    errors = [
        abs(s.predicted_s / s.median_s - 1) for s in result.schemes if s.predicted_s is not None
    ]
    runs = min(len(s.latencies_s) for s in result.schemes)
    text = f"Measured {runs} times or more, in turns, on the real machines."
    if errors:
        text += f" Predictions are off by {max(errors):.0%} at most."
    r2 = min(filter(None, (result.link.link.up_r2, result.link.link.down_r2)), default=None)
    return text + (f" The link fits a line with r2 = {r2:.3f}." if r2 else "")
