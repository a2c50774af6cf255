"""`offload verify`: check that cutting a model, or a bundle, changes no output."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from offload.bundle.bundle import open_bundle
from offload.bundle.sample_inputs import SampleOptions, ValueRange
from offload.bundle.verify import Check, CutCheck
from offload.errors import InputError
from offload.graph.load import load_model
from offload_runtimes.deploy.targets import DEVICES
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.proof_record import read_proof_record, repeat
from offload_runtimes.measure.verify import check_of, cuts_of
from offload_runtimes.value_files import read_arrays

from offload_cli.on_target import OnOption, machine_on
from offload_cli.options import (
    AllowCpuOption,
    DevicesOption,
    FormatOption,
    ProviderOption,
    ShapeOption,
    ThreadsOption,
    parse_shapes,
)
from offload_cli.output import Format, Output
from offload_cli.plans import first_few


def verify(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|BUNDLE", help="The .onnx file, or a bundle's folder.", show_default=False
        ),
    ],
    cuts: Annotated[int, typer.Option(min=2, metavar="N", help="Check at most N cuts.")] = 24,
    input_texts: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="INPUT",
            help="Use the inputs of an .npz file; or set one input by name to a number"
            " (`sr=16000`) or to random values within bounds (`ids=0..30521`); repeatable.",
        ),
    ] = [],  # noqa: B006  typer wants a list and copies it
    shape: ShapeOption = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed the random inputs.")] = 0,
    form: FormatOption = Format.TEXT,
    threads: ThreadsOption = None,
    provider: ProviderOption = [],  # noqa: B006
    allow_cpu: AllowCpuOption = False,
    on: OnOption = "",
    devices: DevicesOption = Path(DEVICES),
) -> None:
    """Check that cutting a model, or a bundle, changes no output.

    Cuts the model in many places and compares the parts with the whole. With onnxruntime's
    optimisations off, all outputs must be bit-equal (except half precision); with them on, within
    a tight bound relative to the largest value. Noise in place of a tensor at the cut must change
    an output; otherwise the comparison says nothing about that tensor, and it is listed. Exit
    code 1 on any mismatch.

    For a bundle, repeats the proof that it carries with the segments it holds: this checks that a
    device computes what the machine computed that made the bundle.

    With --on, the target's own onnxruntime computes the parts and the whole.

    Example: `offload verify net.onnx --shape x=1x3x224x224 --cuts 50`, `offload verify net.bundle`,
    `offload verify net.onnx --on pi`
    """
    output = Output(form)
    options = EngineOptions(tuple(provider), threads, allow_cpu=allow_cpu)
    if path.is_dir():
        if on:
            raise InputError(
                f"{path} is a bundle: `offload deploy {path} {on}` proves it on the target"
            )
        _verify_bundle(output, path, options)
        return
    inputs = parse_inputs(input_texts, parse_shapes(shape), seed)
    model = load_model(path)
    with machine_on(on, devices, options) as (machine, options), output.progress() as progress:
        check = check_of(model, options, inputs, machine)
        places = cuts_of(check, cuts)
        task = progress.add_task(f"verifying {path.name}", total=len(places))
        results = check.cuts(places, lambda _: progress.advance(task))
    wrong = [result for result in results if result.mismatches]
    exact = max((result.exact for result in results), default=0.0)
    optimized = max((result.optimized for result in results), default=0.0)
    bits = "bit-equal" if not exact else f"worst {exact:.1e}"
    output.result(
        _json(model.digest, check, results),
        f"{path}: {len(wrong)} of {len(results)} cuts give a wrong answer"
        if wrong
        else f"{path}: right at {len(results)} cuts: {bits} without optimisations, "
        f"worst relative difference {optimized:.1e} with them",
    )
    for result in wrong:
        for mismatch in result.mismatches[:3]:
            output.text(f"  cut at {_place(result)}: {mismatch}")
    idle = sorted({name for result in results for name in result.idle})
    if idle:
        output.warning(
            f"noise in place of {first_few([repr(name) for name in idle])} changes no output: the"
            " check says nothing about these tensors (are the weights all equal?)"
        )
    if wrong:
        raise typer.Exit(1)


def _verify_bundle(output: Output, path: Path, options: EngineOptions) -> None:
    bundle = open_bundle(path)
    run, maker = repeat(bundle, options), read_proof_record(bundle)
    verdict = "right" if run.ok else f"wrong: tensor {run.tensor!r} differs"
    plans = f" of {len(bundle.plans)} plans" if len(bundle.plans) > 1 else ""
    output.result(
        {"bundle": bundle.digest, **run.to_json(), "maker": maker.to_json()},
        f"{path}: {verdict}: {run.segments} segments{plans} ran here, {run.equal} of {run.outputs}"
        f" outputs have the maker's bits, worst relative difference {run.worst:.1e} of"
        f" {run.allowed:.1e} allowed (onnxruntime {run.ort}; the maker's was {maker.onnxruntime})",
    )
    if not run.ok:
        raise typer.Exit(1)


def parse_inputs(
    texts: Sequence[str], shapes: dict[str, tuple[int, ...]], seed: int
) -> SampleOptions:
    """Inputs from `in.npz`, `name=16000` and `name=0..99`.

    Raises:
        InputError: a text has none of these forms, or a file cannot be read.
    """
    arrays: dict[str, Any] = {}
    ranges: dict[str, ValueRange] = {}
    for text in texts:
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
    return SampleOptions(arrays, ranges, shapes, seed)


def _place(result: CutCheck) -> str:
    if not result.tensors:
        return "its beginning" if not result.device else "its end"
    return first_few(result.tensors)


def _json(digest: str, check: Check, results: Sequence[CutCheck]) -> dict[str, Any]:
    return {
        "model": digest,
        "inputs": [
            {name: list(np.shape(value)) for name, value in feeds.items()} for feeds in check.inputs
        ],
        "ok": not any(result.mismatches for result in results),
        "cuts": [
            {
                "tensors": list(result.tensors),
                "device_layers": len(result.device),
                "worst_exact": _finite(result.exact),
                "worst_optimized": _finite(result.optimized),
                "mismatches": [
                    {"tensor": wrong.tensor, "gap": _finite(wrong.gap), "reason": str(wrong)}
                    for wrong in result.mismatches
                ],
                "idle": list(result.idle),
            }
            for result in results
        ],
    }


def _finite(value: float) -> float | None:
    """The value, or null: JSON has no infinity."""
    return value if math.isfinite(value) else None
