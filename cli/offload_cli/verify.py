"""`offload verify`: prove that cutting a model changes no answer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from offload.bundle.bundle import open_bundle
from offload.bundle.sample_inputs import GivenInputs, ValueRange
from offload.bundle.verify import Check, CutCheck
from offload.errors import InputError
from offload.graph.load import load_model
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.proof_record import read_proof_record, repeat
from offload_runtimes.measure.verify import check_of, cuts_of
from offload_runtimes.value_files import read_arrays

from offload_cli.options import (
    AllowCpuOption,
    FormatOption,
    ProviderOption,
    ShapeOption,
    ThreadsOption,
    parse_shapes,
)
from offload_cli.output import Format, Output

_MOST_CUTS = 24
_SHOWN_TENSORS = 3


def verify(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|BUNDLE", help="The .onnx file, or a bundle's folder.", show_default=False
        ),
    ],
    cuts: Annotated[int, typer.Option(min=2, help="Cut at so many places at most.")] = _MOST_CUTS,
    given: Annotated[
        list[str],
        typer.Option(
            "--input",
            help="Inputs to use: an .npz file; or one input by name, as a number (`sr=16000`) or"
            " bounds for random ones (`ids=0..30521`); repeatable.",
        ),
    ] = [],  # noqa: B006  typer wants a list and copies it
    shape: ShapeOption = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    form: FormatOption = Format.TEXT,
) -> None:
    """Cut a model in many places, run the parts against the whole, and compare.

    With the engine's optimisations off every answer must be equal to the bit (half precision
    aside); with them on, within a tight bound relative to the largest value. Noise in place of a
    tensor at the cut must change the answer, or the check would prove nothing about it: tensors
    where it does not are listed. Exit status 1 on any mismatch.

    A bundle keeps the proof of its own cut: it is repeated here, with the segments that are here,
    so that a device can check that it computes what the maker computed.

    Example: `offload verify net.onnx --shape x=1x3x224x224 --cuts 50`, `offload verify net.bundle`
    """
    output = Output(form)
    options = EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu)
    if path.is_dir():
        _verify_bundle(output, path, options)
        return
    inputs = _given(given, parse_shapes(shape), seed)
    model = load_model(path)
    check = check_of(model, options, inputs)
    places = cuts_of(check, cuts)
    with output.progress() as progress:
        task = progress.add_task(f"verifying {path.name}", total=len(places))
        found = check.cuts(places, lambda _: progress.advance(task))
    output.result(_json(model.digest, check, found), _sentence(path, found))
    _remark(output, found)
    if any(item.mismatches for item in found):
        raise typer.Exit(1)


def _verify_bundle(output: Output, path: Path, options: EngineOptions) -> None:
    bundle = open_bundle(path)
    found, maker = repeat(bundle, options), read_proof_record(bundle)
    bits = f"{found.equal} of {found.outputs} outputs have the maker's bits"
    of = f" of {len(bundle.plans)} plans" if len(bundle.plans) > 1 else ""
    verdict = "right" if found.ok else f"wrong: tensor {found.tensor!r} is off"
    text = (
        f"{path}: {verdict}: {found.segments} segments{of} ran here, {bits}, worst relative"
        f" difference {found.worst:.1e} of {found.allowed:.1e} allowed (onnxruntime {found.ort};"
        f" the maker's was {maker.onnxruntime})"
    )
    output.result({"bundle": bundle.digest, **found.to_json(), "maker": maker.to_json()}, text)
    if not found.ok:
        raise typer.Exit(1)


def _given(given: Sequence[str], shapes: dict[str, tuple[int, ...]], seed: int) -> GivenInputs:
    arrays: dict[str, Any] = {}
    ranges: dict[str, ValueRange] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        if not equals or Path(text).is_file():
            arrays.update(read_arrays(Path(text)))
            continue
        low, dots, high = value.partition("..")
        try:
            ranges[name] = ValueRange(float(low), float(high if dots else low))
        except ValueError:
            raise InputError(
                f"--input {text!r} is not understood: write in.npz, name=16000 or name=0..99"
            ) from None
    return GivenInputs(arrays, ranges, shapes, seed)


def _sentence(path: Path, found: Sequence[CutCheck]) -> str:
    wrong = [item for item in found if item.mismatches]
    if wrong:
        return f"{path}: {len(wrong)} of {len(found)} cuts give a wrong answer"
    exact = max((item.exact for item in found), default=0.0)
    optimized = max((item.optimized for item in found), default=0.0)
    bits = "bit-equal" if not exact else f"worst {exact:.1e}"
    return (
        f"{path}: right at {len(found)} cuts: {bits} without optimisations, "
        f"worst relative difference {optimized:.1e} with them"
    )


def _remark(output: Output, found: Sequence[CutCheck]) -> None:
    for item in found:
        for mismatch in item.mismatches[:_SHOWN_TENSORS]:
            output.text(f"  cut at {_place(item)}: {mismatch}")
    idle = sorted({name for item in found for name in item.idle})
    if idle:
        shown = ", ".join(map(repr, idle[:_SHOWN_TENSORS]))
        more = f" and {len(idle) - _SHOWN_TENSORS} more" if len(idle) > _SHOWN_TENSORS else ""
        output.warning(
            f"noise in place of {shown}{more} changes no output: about those the check says"
            " nothing (does the model have live weights?)"
        )


def _place(item: CutCheck) -> str:
    if not item.tensors:
        return "its beginning" if not item.device else "its end"
    shown = ", ".join(item.tensors[:_SHOWN_TENSORS])
    more = f" and {len(item.tensors) - _SHOWN_TENSORS} more tensors"
    return shown + (more if len(item.tensors) > _SHOWN_TENSORS else "")


def _json(digest: str, check: Check, found: Sequence[CutCheck]) -> dict[str, Any]:
    return {
        "model": digest,
        "inputs": [
            {name: list(np.shape(v)) for name, v in feeds.items()} for feeds in check.inputs
        ],
        "ok": not any(item.mismatches for item in found),
        "cuts": [
            {
                "tensors": list(item.tensors),
                "device_layers": len(item.device),
                "worst_exact": _finite(item.exact),
                "worst_optimized": _finite(item.optimized),
                "mismatches": [
                    {"tensor": m.tensor, "gap": _finite(m.gap), "reason": str(m)}
                    for m in item.mismatches
                ],
                "idle": list(item.idle),
            }
            for item in found
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
