"""The tools people split ONNX models with today, each behind the same call."""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from offload.bundle.subgraph import Part
from offload.bundle.weights import write_parts
from offload.graph.load import load_model

from tests.toolkit.tensor_cuts import parts_at

Parts = Mapping[str, Part]
Splitter = Callable[[Path, Parts, Path], None]


@dataclass(frozen=True)
class Tool:
    """A splitter: `split(model, parts, folder)` writes each part to the file of its key."""

    name: str
    split: Splitter


def floor(model: Path, parts: Parts, folder: Path) -> None:
    """One load and one save: the minimum for any splitter."""
    onnx.save(onnx.load(model), folder / next(iter(parts)))


def ours(model: Path, parts: Parts, folder: Path) -> None:
    """Our splitter, given the tensors at the cut like the others."""
    loaded = load_model(model)
    device = next(iter(parts.values()))
    write_parts(loaded, parts_at(loaded, device.outputs), folder)


def onnx_extract(model: Path, parts: Parts, folder: Path) -> None:
    for name, part in parts.items():
        onnx.utils.extract_model(model, folder / name, list(part.inputs), list(part.outputs))


def typed(model: Path) -> onnx.ModelProto:
    """The model with types of inner values, which the next three need and do not infer."""
    return onnx.shape_inference.infer_shapes(onnx.load(model))


def graphsurgeon(model: Path, parts: Parts, folder: Path) -> None:
    source = typed(model)
    for name, part in parts.items():
        graph = gs.import_onnx(source)
        tensors = graph.tensors()
        graph.inputs = [tensors[value] for value in part.inputs]
        for value in graph.inputs:
            value.inputs.clear()
        graph.outputs = [tensors[value] for value in part.outputs]
        onnx.save(gs.export_onnx(graph.cleanup()), folder / name)


def polygraphy(model: Path, parts: Parts, folder: Path) -> None:
    from polygraphy.backend.onnx import extract_subgraph, save_onnx
    from polygraphy.common import TensorMetadata
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    source = typed(model)
    tensors = gs.import_onnx(source).tensors()
    for name, part in parts.items():
        given, wanted = TensorMetadata(), TensorMetadata()
        for value in part.inputs:
            given.add(value, dtype=tensors[value].dtype, shape=tensors[value].shape)
        for value in part.outputs:
            wanted.add(value, dtype=tensors[value].dtype, shape=tensors[value].shape)
        save_onnx(extract_subgraph(source, given, wanted), str(folder / name))


def sne4onnx(model: Path, parts: Parts, folder: Path) -> None:
    from sne4onnx import extraction

    source = folder / "typed.onnx"
    onnx.save(typed(model), source)
    for name, part in parts.items():
        with contextlib.redirect_stdout(io.StringIO()):
            extraction(
                list(part.inputs),
                list(part.outputs),
                input_onnx_file_path=str(source),
                output_onnx_file_path=str(folder / name),
                non_verbose=True,
            )


PEERS = (
    Tool("onnx extract_model", onnx_extract),
    Tool("onnx-graphsurgeon", graphsurgeon),
    Tool("polygraphy", polygraphy),
    Tool("sne4onnx", sne4onnx),
)
OURS = Tool("offload", ours)
FLOOR = Tool("floor (load + save)", floor)
