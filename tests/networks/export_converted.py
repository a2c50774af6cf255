"""Convert exported networks as users do: `python export_converted.py NAME FOLDER`.

onnxruntime's quantisers and optimisers, conversion to float16, onnxslim. The network that a tool
starts from is in the folder beside, under its own name.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from export_common import main
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


def source(folder: Path, name: str) -> Path:
    """The network to convert; its inputs are kept as they are."""
    made = folder.parent / name
    shutil.copy(made / "in.npz", folder / "in.npz")
    return made / "model.onnx"


class Samples(CalibrationDataReader):
    """Eight random inputs like the network's own."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "in.npz") as arrays:
            self.feeds = {name: arrays[name] for name in arrays.files}
        self.left = self.drawn()

    def drawn(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for _ in range(8):
            yield {n: rng.random(a.shape).astype(a.dtype) for n, a in self.feeds.items()}

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def dynamic(folder: Path, name: str) -> None:
    """Weights in int8, activations quantised as they come."""
    quantize_dynamic(source(folder, name), folder / "model.onnx", weight_type=QuantType.QInt8)


def static(folder: Path, name: str, kind: QuantFormat) -> None:
    """Weights and activations in int8 with calibrated ranges."""
    with tempfile.TemporaryDirectory() as place:
        ready = Path(place) / "ready.onnx"
        quant_pre_process(source(folder, name), ready)
        quantize_static(
            ready,
            folder / "model.onnx",
            Samples(folder),
            quant_format=kind,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def four_bits(folder: Path, name: str) -> None:
    """Weights of matrix products in blocks of 4 bits (MatMulNBits)."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source(folder, name)), block_size=32)
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / "model.onnx"), False)


def half(folder: Path, name: str) -> None:
    """All weights and values in float16; inputs and outputs too."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = convert_float_to_float16(onnx.load(source(folder, name)), keep_io_types=False)
    onnx.save(proto, folder / "model.onnx")
    feeds = Samples(folder).feeds
    arrays: dict[str, Any] = {
        n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in feeds.items()
    }
    np.savez(folder / "in.npz", **arrays)


def fused(folder: Path, name: str, kind: str, heads: int, width: int) -> None:
    """onnxruntime's optimiser for transformers: attention and norms as one operator each."""
    from onnxruntime.transformers.optimizer import optimize_model

    made = optimize_model(str(source(folder, name)), kind, heads, width, opt_level=0)
    made.save_model_to_file(str(folder / "model.onnx"))


def saved_optimised(folder: Path, name: str) -> None:
    """The graph as onnxruntime optimises it (extended), saved and used as a model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "model.onnx")
    ort.InferenceSession(str(source(folder, name)), options, providers=["CPUExecutionProvider"])


def slimmed(folder: Path, name: str) -> None:
    """onnxslim's simplification."""
    import onnxslim

    onnx.save(onnxslim.slim(str(source(folder, name))), folder / "model.onnx")


NETWORKS: dict[str, Callable[[Path], None]] = {
    "bert-int8-dynamic": partial(dynamic, name="bert-legacy"),
    "mobilenet_v3_small-qdq": partial(static, name="mobilenet_v3_small", kind=QuantFormat.QDQ),
    "resnet18-qlinear": partial(static, name="resnet18", kind=QuantFormat.QOperator),
    "llama-int4": partial(four_bits, name="llama"),
    "resnet18-float16": partial(half, name="resnet18"),
    "vit_tiny-float16": partial(half, name="vit_tiny"),
    "bert-fused": partial(fused, name="bert-legacy", kind="bert", heads=4, width=192),
    "googlenet-optimised": partial(saved_optimised, name="googlenet-legacy"),
    "swin_t-slim": partial(slimmed, name="swin_t"),
}

main(NETWORKS)
