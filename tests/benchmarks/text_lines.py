"""Whether lossy encodings change what PP-OCR reads: real weights, rendered lines."""

import tempfile
from pathlib import Path

import numpy as np
from offload.bundle.bundle import Bundle
from offload.costs.encodings import EncodingPolicy
from offload.costs.link import parse_link
from offload.graph.load import load_model
from offload.planning.closed_sets import articulations
from offload_models import pretrained
from offload_models.text import alphabet, ctc_collapse, render_line
from offload_models.zoo import save
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.values import Array
from offload_runtimes.local import open_session
from offload_runtimes.measure.profile import read_fused
from offload_runtimes.measure.split import SplitRequest, split

from tests.benchmarks.goals import Goal

LINES, CALIBRATION_LINES = 60, 12
TOLERANCE = 0.02
OPTIONS = EngineOptions(threads=1)
WORDS = ("split", "inference", "sends", "fewer", "bytes", "when", "casts", "live", "inside")


def line(model: str, seed: int) -> Array:
    """A picture of two words and a number, upside down every third time, with a camera's grain."""
    wants, random = pretrained.PRETRAINED[model], np.random.default_rng(seed)
    text = f"{' '.join(random.choice(WORDS, 2))} {random.integers(10_000)}"
    turned = model == "text_orientation" and seed % 3 == 0
    return render_line(text, wants.width, wants.height, turned, 4.0, seed)[None]


def split_with(folder: Path, model: str, tolerance: float) -> Bundle:
    """Split a model a quarter of the way through, where a float tensor crosses."""
    source, samples = folder / f"{model}.onnx", folder / f"{model}.npz"
    save(pretrained.build(model), source)
    calibration = [line(model, 1000 + seed) for seed in range(CALIBRATION_LINES)]
    np.savez(samples, image=np.concatenate(calibration))
    graph = read_fused(load_model(source))
    gates = [graph.layers[index].outputs[0] for index in articulations(graph)]
    floats = [name for name in gates if graph.tensors[name].dtype == "float"]
    request = SplitRequest(
        source,
        parse_link("4g"),
        cut=(floats[len(floats) // 4],),
        options=OPTIONS,
        allowance=EncodingPolicy.parse("", tolerance, None, samples),
    )
    return split(request, folder / f"{model}-{tolerance:g}.bundle")


def same_texts(folder: Path) -> tuple[int, Bundle]:
    """Number of lines for which the lossy split and the whole model return the same text."""
    bundle = split_with(folder, "text_recognition", TOLERANCE)
    source = folder / "text_recognition.onnx"
    letters, whole = alphabet(load_model(source).proto), load(source, OPTIONS)
    same = 0
    with open_session(bundle, threads=1) as session:
        for seed in range(LINES):
            feeds = {"image": line("text_recognition", seed)}
            texts = [ctc_collapse(run.run(None, feeds)[0], letters) for run in (whole, session)]
            same += texts[0] == texts[1]
    return same, bundle


def goals() -> list[Goal]:
    """The goals; prints the reasons of the plans."""
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as place:
        same, bundle = same_texts(Path(place))
        tight = split_with(Path(place), "text_orientation", 1e-9)
    print(f"PP-OCR recognition, tolerance {TOLERANCE:g}: {bundle.plan.reason}")
    print(f"PP-OCR orientation, tolerance 1e-9: {tight.plan.reason}")
    return [
        Goal(
            f"lines read the same with --tolerance {TOLERANCE:g}, the cut lossy",
            "at least 99 %",
            f"{same} of {LINES} ({', '.join(s.encoding for s in bundle.plan.uploads)})",
            same >= 0.99 * LINES and not bundle.plan.is_lossless,
        ),
        Goal(
            "a tolerance that nothing meets",
            "falls back, says so",
            "lossless" if tight.plan.is_lossless else "lossy",
            tight.plan.is_lossless and "all is lossless" in tight.plan.reason,
        ),
    ]


if __name__ == "__main__":
    from tests.benchmarks.goals import report

    raise SystemExit(report(goals()))
