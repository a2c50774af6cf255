"""`offload encode-report`: what the tensors at a bundle's cut take, encoded every way."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from offload.bundle.bundle import Bundle, open_bundle
from offload.bundle.sample_inputs import bundle_inputs
from offload.errors import InputError
from offload.files import write_text
from offload.planning.plan import Side
from offload.report.charts import sizes_svg
from offload.units import format_bytes, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.calibration import Calibration, random_calibration, read_calibration
from offload_runtimes.measure.encoding_report import CutTensor, EncodeReport, EncodingRow
from offload_runtimes.measure.encoding_report import encode_report as report_of

from offload_cli.options import (
    BundleArgument,
    FormatOption,
    PlanOption,
    ShapeOption,
    ThreadsOption,
    parse_shapes,
)
from offload_cli.output import Format, Output
from offload_cli.planning_options import CalibrationOption

COLUMNS = (
    "encoding", ">bytes (mean)", ">bytes (p95)", ">ratio", ">encode", ">decode",
    ">output change (max)", ">(mean)", ">top-1 same", ">top-5 same", "",
)  # fmt: skip


def encode_report(
    bundle: BundleArgument,
    plan: PlanOption = None,
    calibration: CalibrationOption = None,
    shape: ShapeOption = [],  # noqa: B006  typer wants a list and copies it
    picture: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the sizes as a picture (.svg).")
    ] = None,
    threads: ThreadsOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show every tensor at a bundle's cut under every encoding: bytes, seconds, effect.

    Both parts are run on this machine on the calibration inputs; what an encoding does to the
    outputs is measured with that one alone. Without --calibration inputs are random, and so are
    the sizes. Of a bundle of several plans: the first that sends something up, or --plan.

    Example: `offload encode-report net.bundle --calibration photos.npz -o sizes.svg`
    """
    output = Output(form)
    opened = _of_plan(open_bundle(bundle, tuple(Side)), plan)
    given = _calibration(opened, calibration, parse_shapes(shape))
    with output.steps() as progress:
        found = report_of(opened, given, EngineOptions(threads=threads), progress)
    output.result(_json(found, given), _sentence(opened, found, given))
    if found.unproven:
        output.warning(f"{found.unproven}: the changes shown prove nothing")
    for tensor in found.tensors:
        _show(output, tensor)
    if picture is not None:
        write_text(picture, _picture(opened, found))
        output.remark(f"picture: {picture}")


def _of_plan(bundle: Bundle, plan: int | None) -> Bundle:
    sending = [number for number, each in enumerate(bundle.plans) if each.uploads]
    return bundle.only((sending or [0])[0] if plan is None else plan)


def _calibration(
    bundle: Bundle, path: Path | None, shapes: Mapping[str, tuple[int, ...]]
) -> Calibration:
    if not bundle.plan.uploads:
        raise InputError(f"{bundle.path} sends nothing up: there is nothing to encode")
    inputs = bundle_inputs(bundle).bound(shapes)
    return random_calibration(inputs) if path is None else read_calibration(path, inputs.values)


def _sentence(bundle: Bundle, found: EncodeReport, given: Calibration) -> str:
    kind = "random input" if given.is_random else "calibration input"
    count = len(given.feeds)
    effect = found.effect
    right = f", {effect.accuracy:.2%} of the labels right" if effect.accuracy is not None else ""
    return (
        f"{bundle.path}: {len(found.tensors)} tensors cross; on {count} {kind}{'s'[: count != 1]}"
        f" the plan's encodings change the outputs by {effect.worst:.2g} of their range at most"
        f" ({effect.mean:.2g} on average){right}"
    )


def _show(output: Output, tensor: CutTensor) -> None:
    shape = "x".join(map(str, tensor.shape))
    error = tensor.prediction_error
    off = "" if error is None else f", size predicted {error:+.1%} off"
    output.table(
        COLUMNS,
        [_row(tensor, way) for way in tensor.options],
        title=f"{tensor.send.tensor}: {tensor.dtype} {shape}, {tensor.zeros:.0%} zeros{off}",
    )


def _row(tensor: CutTensor, way: EncodingRow) -> tuple[str, ...]:
    measured, effect = way.measured, way.effect
    return (
        measured.encoding.name,
        format_bytes(measured.mean_bytes),
        format_bytes(measured.p95_bytes),
        f"{tensor.raw_bytes / measured.mean_bytes:.2f}" if measured.mean_bytes else "",
        format_s(measured.encode_s),
        format_s(measured.decode_s),
        f"{effect.worst:.2g}",
        f"{effect.mean:.2g}",
        f"{effect.top1:.1%}",
        f"{effect.top5:.1%}",
        "used" if way is tensor.used else "",
    )


def _picture(bundle: Bundle, found: EncodeReport) -> str:
    groups = {
        tensor.send.tensor: [
            (
                way.measured.encoding.name,
                float(way.measured.mean_bytes),
                format_bytes(way.measured.mean_bytes),
            )
            for way in tensor.options
        ]
        for tensor in found.tensors
    }
    used = {tensor.send.tensor: tensor.send.encoding for tensor in found.tensors}
    return sizes_svg(groups, used, f"{bundle.path.name}: bytes at the cut by encoding (dark: used)")


def _json(found: EncodeReport, given: Calibration) -> dict[str, object]:
    return {
        "inputs": len(given.feeds),
        "random": given.is_random,
        "effect": _finite(asdict(found.effect)),
        "unproven": found.unproven,
        "tensors": [
            {
                "tensor": tensor.send.tensor,
                "encoding": tensor.send.encoding,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "zeros": tensor.zeros,
                "raw_bytes": tensor.raw_bytes,
                "prediction_error": tensor.prediction_error,
                "ways": [_way_json(way) for way in tensor.options],
            }
            for tensor in found.tensors
        ],
    }


def _way_json(way: EncodingRow) -> dict[str, object]:
    measured = way.measured
    return {
        "encoding": measured.encoding.name,
        "mean_bytes": measured.mean_bytes,
        "p95_bytes": measured.p95_bytes,
        "encode_s": measured.encode_s,
        "decode_s": measured.decode_s,
        "effect": _finite(asdict(way.effect)),
    }


def _finite(figures: dict[str, float | None]) -> dict[str, float | None]:
    """JSON has no infinity: null."""
    return {k: None if v is None or abs(v) == float("inf") else v for k, v in figures.items()}
