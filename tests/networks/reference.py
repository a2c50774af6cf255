"""What plain onnxruntime answers, and how much one run computes, in a process of its own:
`python -m tests.networks.reference FOLDER`.

Writes `expected.json` (numbers, and answers that are not arrays) and `expected.npz` (arrays). The
allowed differences are those of `offload verify`. A crash of onnxruntime ends only this process.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from offload.bundle.compare import Tolerances, difference
from offload.graph.load import load_model

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


def dtype_of(value: Any) -> str:
    """ONNX's name of an element type, as the tolerances are listed."""
    if not isinstance(value, np.ndarray):
        return "float"  # the probabilities of a map
    name = str(value.dtype.name)
    return {"float32": "float", "float64": "double"}.get(name, name)


def main(folder: Path) -> None:
    model, given = folder / "model.onnx", read_inputs(folder)
    feeds = {n: a.astype(object) if a.dtype.kind == "U" else a for n, a in given.items()}
    plain, optimised = (answers(model, feeds, optimized) for optimized in (False, True))
    loaded = load_model(model)
    freedom = Tolerances.of(loaded)
    arrays: dict[str, Any] = {}
    others, limits = {}, {}
    for name, value in plain.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value.astype(str) if value.dtype == object else value
        else:
            others[name] = value
        own = difference(value, optimised[name])
        own = own if np.isfinite(own) else 0.0
        dtype = dtype_of(value)
        limits[name] = [freedom.limit(dtype, False), freedom.limit(dtype, True, own)]
    np.savez(folder / "expected.npz", **arrays)
    found = {
        "open_inputs": open_inputs(model),
        "nodes": len(loaded.proto.graph.node),
        "flops": count(model, feeds),
        "others": others,
        "limits": limits,
    }
    (folder / "expected.json").write_text(json.dumps(found, default=float))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
