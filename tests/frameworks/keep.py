"""Keep an exported model beside the framework's own answer. Runs in every framework's own
environment: it may import numpy and onnx only."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, np.dtype[Any]]


class Keeper:
    """Writes NAME.onnx and NAME.npz (`in/<input>`, `out/<position>`) to one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def keep(
        self,
        name: str,
        export: Callable[[Path], object],
        feeds: Mapping[str, Array] | Sequence[Array],
        answers: Sequence[Array],
    ) -> None:
        """Export a model, and write its inputs and what the framework answers to them.

        Args:
            name: of the files.
            export: writes the ONNX file to the path it is given.
            feeds: inputs by name, or in the order of the file's inputs.
            answers: the framework's outputs in the order of the file's.
        """
        path = self.folder / f"{name}.onnx"
        export(path)
        graph = onnx.load(path, load_external_data=False).graph
        stored = {tensor.name for tensor in graph.initializer}
        names = [value.name for value in graph.input if value.name not in stored]
        given = feeds if isinstance(feeds, Mapping) else dict(zip(names, feeds, strict=True))
        inputs = {f"in/{key}": np.asarray(value) for key, value in given.items()}
        outputs = {f"out/{place}": np.asarray(value) for place, value in enumerate(answers)}
        if set(given) != set(names):
            raise ValueError(f"{name}: inputs are {names}, given are {list(given)}")
        arrays: dict[str, Any] = {**inputs, **outputs}
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
        size = sum(file.stat().st_size for file in self.folder.glob(f"{name}.*"))
        print(f"{path.name}: {len(graph.node)} nodes, {size / 1000:.0f} kB")
