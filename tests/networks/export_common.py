"""What the export scripts share. They run in `build/models-venv`, not in our own environment.

A script is called as `python export_X.py NAME FOLDER` and writes `model.onnx`, weights beside it
where the exporter keeps them outside, and `in.npz` with one array for each input.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, np.dtype[Any]]


def save_inputs(folder: Path, feeds: Mapping[str, Array] | Sequence[Array]) -> None:
    """Write the inputs of `model.onnx`, given by name or in the order of the file's inputs."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in stored]
    given = feeds if isinstance(feeds, Mapping) else dict(zip(names, feeds, strict=True))
    if set(given) != set(names):
        raise ValueError(f"the model's inputs are {names}, given are {list(given)}")
    arrays: dict[str, Any] = {name: given[name] for name in names}
    np.savez(folder / "in.npz", **arrays)


def from_torch(
    folder: Path,
    module: Any,
    feeds: Mapping[str, Any],
    outputs: Sequence[str],
    *,
    dynamo: bool = True,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    opset: int | None = None,
) -> None:
    """Export a PyTorch module by one of PyTorch's two exporters.

    Args:
        folder: where to write.
        module: called with the feeds in their order.
        feeds: an example tensor for each input, by name.
        outputs: names of the outputs.
        dynamo: the exporter of today (weights outside the file); else the older one, by tracing.
        dynamic: names of the open axes of inputs.
        opset: the operator set; the exporter's own choice where None.
    """
    import torch

    module = module.eval()
    args = tuple(feeds.values())
    more: dict[str, Any] = {} if opset is None else {"opset_version": opset}
    if dynamo and dynamic:
        sizes = [dict(dynamic.get(name, {})) or None for name in feeds]
        kinds = [value.kind for value in signature(module.forward).parameters.values()]
        alone = len(kinds) - kinds.count(Parameter.VAR_POSITIONAL)
        rest = [tuple(sizes[alone:])] if len(kinds) > alone else []
        more["dynamic_shapes"] = (*sizes[:alone], *rest)
    elif dynamic:
        more["dynamic_axes"] = {name: dict(axes) for name, axes in dynamic.items()}
    with torch.no_grad():
        torch.onnx.export(
            module,
            args,
            str(folder / "model.onnx"),
            input_names=list(feeds),
            output_names=list(outputs),
            dynamo=dynamo,
            verbose=False,
            **more,
        )
    save_inputs(folder, [value.numpy() for value in args])


def main(networks: Mapping[str, Callable[[Path], None]]) -> None:
    """Export the network named on the command line."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    networks[name](folder)
