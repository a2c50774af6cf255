"""A model with more than 2 GB of external weights (a sparse file): split, run, peak memory.

`make bench-split-big`. The weights are zeros on a disk that stores no zeros, but for one corner
of each matrix, so that the answer depends on all of them.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from offload.bundle.weights import write_parts
from offload.graph.load import load_model
from onnx import TensorProto, helper

from tests.benchmarks.goals import Goal, report
from tests.toolkit.tensor_cuts import parts_at

SIZE, LAYERS = 8192, 12  # 12 matrices of 256 MiB: 3 GiB
MATRIX_BYTES = 4 * SIZE * SIZE


def make(path: Path) -> None:
    stored, nodes = [], []
    with (path.parent / "weights.bin").open("wb") as file:
        for layer in range(LAYERS):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[SIZE, SIZE])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "weights.bin", "offset": layer * MATRIX_BYTES}
            for key, value in {**place, "length": MATRIX_BYTES}.items():
                tensor.external_data.add(key=key, value=str(value))
            stored.append(tensor)
            for row in range(4):
                file.seek(layer * MATRIX_BYTES + row * 4 * SIZE)
                file.write(np.arange(row, row + 4, dtype=np.float32).tobytes())
            nodes.append(helper.make_node("MatMul", [f"v{layer}", f"w{layer}"], [f"m{layer}"]))
            nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"v{layer + 1}"]))
        file.truncate(LAYERS * MATRIX_BYTES)
    value = helper.make_tensor_value_info
    ends = [value(f"v{i}", TensorProto.FLOAT, ["N", SIZE]) for i in (0, LAYERS)]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), path)


def split(path: Path, folder: Path) -> None:
    """In a process of its own; prints its peak memory in bytes."""
    before = peak_bytes()
    model = load_model(path)
    write_parts(model, parts_at(model, [f"v{LAYERS // 2}"]), folder)
    print(before, peak_bytes())


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(paths: list[Path]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    from offload_runtimes.engine import EngineOptions, load

    rng = np.random.default_rng(0)
    value = rng.standard_normal((1, SIZE)).astype(np.float32)
    for path in paths:
        engine = load(path, EngineOptions(optimize=False))
        (value,) = engine.run(None, {engine.inputs[0].name: value})
        del engine
    return value


def main() -> int:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as name:
        folder = Path(name)
        path, out = folder / "big.onnx", folder / "out"
        out.mkdir()
        make(path)
        started = time.perf_counter()
        command = [sys.executable, __file__, str(path), str(out)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
        before, peak = (int(word) for word in shown.stdout.split())
        whole = answer([path])
        parts = answer([out / "device-0.onnx", out / "server-0.onnx"])
    size = LAYERS * MATRIX_BYTES
    print(f"{size / 1e9:.2f} GB of weights split in {seconds:.1f} s")
    print(f"peak memory {peak / 1e6:.0f} MB, of which {before / 1e6:.0f} MB before loading")
    same = bool(np.array_equal(whole, parts)) and bool(np.abs(whole).sum() > 0)
    grown = peak - before
    return report(
        [
            Goal("parts equal the whole", "bit-equal", str(same), same),
            Goal(
                "memory for the split",
                "<= one tensor (268 MB)",
                f"{grown / 1e6:.0f} MB",
                grown <= MATRIX_BYTES,
            ),
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        split(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        sys.exit(main())
