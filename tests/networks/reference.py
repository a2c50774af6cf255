"""What plain onnxruntime answers, and how much one run computes, in a process of its own:
`python -m tests.networks.reference FOLDER`.

Writes `expected.json`, with arrays in `expected.npz`. A crash of onnxruntime ends only this.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.networks.counting import count


def read_inputs(folder: Path) -> dict[str, Any]:
    with np.load(folder / "in.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def answers(model: Path, feeds: dict[str, Any], optimized: bool) -> dict[str, Any]:
    """Outputs by name."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def open_inputs(model: Path) -> dict[str, bool]:
    """Each input's name, and whether some of its sizes are open."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return {
        value.name: not all(isinstance(size, int) for size in value.shape)
        for value in session.get_inputs()
    }


def main(folder: Path) -> None:
    model, given = folder / "model.onnx", read_inputs(folder)
    feeds = {n: a.astype(object) if a.dtype.kind == "U" else a for n, a in given.items()}
    arrays: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for kind, optimized in (("plain", False), ("optimised", True)):
        for name, value in answers(model, feeds, optimized).items():
            if isinstance(value, np.ndarray):
                arrays[f"{kind}/{name}"] = value.astype(str) if value.dtype == object else value
            else:
                others[f"{kind}/{name}"] = value
    np.savez(folder / "expected.npz", **arrays)
    found = {
        "open_inputs": open_inputs(model),
        "flops": count(model, feeds),
        "others": others,
    }
    (folder / "expected.json").write_text(json.dumps(found, default=float))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
