"""`offload encode-report`: size, seconds and effect of every encoding at a bundle's cut."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from offload.bundle.bundle import Bundle, open_bundle
from offload.bundle.model_inputs import bundle_inputs
from offload.errors import InputError
from offload.files import write_text
from offload.planning.plan import Side
from offload.report.charts import sizes_svg
from offload.units import format_bytes, format_s
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.calibration import Calibration, random_calibration, read_calibration
from offload_runtimes.measure.encoding_report import CutTensor, EncodeReport, EncodingRow
from offload_runtimes.measure.encoding_report import encode_report as measure_encodings

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
    chart: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write a chart of the sizes to this SVG file."),
    ] = None,
    threads: ThreadsOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show size, seconds and effect of every encoding at the cut.

    Runs both parts on this machine on the calibration inputs. The effect of an encoding on the
    outputs is measured with all other tensors raw. Without --calibration, the inputs are random and
    the sizes are not those of real data. For a bundle with several plans, uses the first that
    uploads anything, or --plan.

    Example: `offload encode-report net.bundle --calibration photos.npz -o sizes.svg`
    """
    output = Output(form)
    opened = open_bundle(bundle, tuple(Side))
    if plan is None:
        plan = next((index for index, each in enumerate(opened.plans) if each.uploads), 0)
    opened = opened.only(plan)
    if not opened.plan.uploads:
        raise InputError(f"{opened.path} sends nothing up: there is nothing to encode")
    inputs = bundle_inputs(opened).bound(parse_shapes(shape))
    samples = (
        read_calibration(calibration, inputs.values) if calibration else random_calibration(inputs)
    )
    with output.steps() as progress:
        report = measure_encodings(opened, samples, EngineOptions(threads=threads), progress)
    effect = report.effect
    kind = "random input" if samples.is_random else "calibration input"
    count = len(samples.feeds)
    labels = f", {effect.accuracy:.2%} of the labels right" if effect.accuracy is not None else ""
    output.result(
        _json(report, samples),
        f"{opened.path}: {len(report.tensors)} tensors are sent; on {count}"
        f" {kind}{'s'[: count != 1]} the plan's encodings change the outputs by at most"
        f" {effect.worst:.2g} of their range ({effect.mean:.2g} on average){labels}",
    )
    if report.unproven:
        output.warning(f"{report.unproven}: the changes shown prove nothing")
    for tensor in report.tensors:
        error = tensor.prediction_error
        size = "" if error is None else f", predicted size {error:+.1%} off"
        dimensions = "x".join(map(str, tensor.shape))
        output.table(
            COLUMNS,
            [_row(tensor, row) for row in tensor.options],
            title=f"{tensor.send.tensor}: {tensor.dtype} {dimensions}, {tensor.zeros:.0%}"
            f" zeros{size}",
        )
    if chart is not None:
        write_text(chart, _chart(opened, report))
        output.remark(f"wrote {chart}")


def _row(tensor: CutTensor, row: EncodingRow) -> tuple[str, ...]:
    measured, effect = row.measured, row.effect
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
        "used" if row is tensor.used else "",
    )


def _chart(bundle: Bundle, report: EncodeReport) -> str:
    groups = {
        tensor.send.tensor: [
            (
                row.measured.encoding.name,
                float(row.measured.mean_bytes),
                format_bytes(row.measured.mean_bytes),
            )
            for row in tensor.options
        ]
        for tensor in report.tensors
    }
    used = {tensor.send.tensor: tensor.send.encoding for tensor in report.tensors}
    return sizes_svg(groups, used, f"{bundle.path.name}: bytes at the cut by encoding (dark: used)")


def _json(report: EncodeReport, samples: Calibration) -> dict[str, object]:
    return {
        "inputs": len(samples.feeds),
        "random": samples.is_random,
        "effect": _finite(asdict(report.effect)),
        "unproven": report.unproven,
        "tensors": [
            {
                "tensor": tensor.send.tensor,
                "encoding": tensor.send.encoding,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "zeros": tensor.zeros,
                "raw_bytes": tensor.raw_bytes,
                "prediction_error": tensor.prediction_error,
                "ways": [
                    {
                        "encoding": row.measured.encoding.name,
                        "mean_bytes": row.measured.mean_bytes,
                        "p95_bytes": row.measured.p95_bytes,
                        "encode_s": row.measured.encode_s,
                        "decode_s": row.measured.decode_s,
                        "effect": _finite(asdict(row.effect)),
                    }
                    for row in tensor.options
                ],
            }
            for tensor in report.tensors
        ],
    }


def _finite(figures: dict[str, float | None]) -> dict[str, float | None]:
    """The figures, infinite ones as null: JSON has no infinity."""
    return {k: None if v is None or abs(v) == float("inf") else v for k, v in figures.items()}
