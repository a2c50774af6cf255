"""Say which sizes of a model's inputs are open, and how to give them."""

import re
from collections.abc import Mapping, Sequence

from onnx import ValueInfoProto

from offload.graph.infer import known_size
from offload.graph.load import Model
from offload.graph.model import Graph

# Sizes to show in an example, by what axes are called; else by the input's rank.
_SIDE, _LENGTH = 640, 128
_CALLED = ((re.compile(r"height|width|^[hw]$", re.IGNORECASE), _SIDE),
           (re.compile(r"batch|^[nb]$|past|num_", re.IGNORECASE), 1))  # fmt: skip
_SHOWN = 4


def open_sizes(model: Model, graph: Graph) -> str:
    """Which input sizes are open and how to give them; empty when all are known.

    Args:
        model: the model.
        graph: its layers, read with the sizes that were given.
    """
    inputs = model.wiring.inputs
    left = [name for name in graph.inputs if name in inputs and _is_open(graph, name)]
    if not left:
        return ""
    axes = [(name, _labels(inputs[name])) for name in left]
    examples = _examples(axes)
    shown = ", ".join(_described(inputs[name]) for name in left[:_SHOWN])
    more = f" and of {len(left) - _SHOWN} more inputs" if len(left) > _SHOWN else ""
    return f"the sizes of {shown}{more} are open: give them, like {' '.join(examples)}"


def _examples(inputs: Sequence[tuple[str, Sequence[int | str]]]) -> list[str]:
    """`--shape` for the inputs that need one: axes of one name are bound together."""
    named = [
        (label, axis, len(labels))
        for _, labels in inputs
        for axis, label in enumerate(labels)
        if isinstance(label, str)
    ]
    sizes: dict[str, int] = {}
    for label, axis, rank in sorted(named, key=lambda each: "+" in each[0]):
        sizes.setdefault(label, _example(label, axis, rank, sizes))
    bound: set[str] = set()
    examples = []
    for name, labels in inputs:
        open_labels = {label for label in labels if isinstance(label, str)}
        if open_labels and open_labels <= bound:
            continue
        bound |= open_labels - {""}
        shape = [
            label if isinstance(label, int) else sizes[label] if label else None for label in labels
        ]
        shown = [
            _example("", axis, len(labels), sizes) if size is None else size
            for axis, size in enumerate(shape)
        ] or [1]
        examples.append(f"--shape {_quoted(name)}={'x'.join(map(str, shown))}")
    return examples


def _is_open(graph: Graph, name: str) -> bool:
    tensor = graph.tensors[name]
    return tensor.dtype is not None and (tensor.shape is None or None in tensor.shape)


def _labels(value: ValueInfoProto) -> list[int | str]:
    """By axis: its size, or its name; empty for one without a name."""
    return [
        dim.dim_param if (size := known_size(dim)) is None else size
        for dim in value.type.tensor_type.shape.dim
    ]


def _example(label: str, axis: int, rank: int, sizes: Mapping[str, int]) -> int:
    """A size that is usual for an axis; the sum where its name is one of known sizes."""
    parts = [part.strip() for part in label.split("+")]
    if len(parts) > 1 and all(part in sizes or part.isdecimal() for part in parts):
        return sum(sizes[part] if part in sizes else int(part) for part in parts)
    for pattern, size in _CALLED:
        if pattern.search(label):
            return size
    if axis == 0:
        return 1
    return _SIDE if rank == 4 else _LENGTH


def _described(value: ValueInfoProto) -> str:
    """`input 'images' (batch x 3 x height x width: axes 0, 2 and 3)`."""
    labels = _labels(value)
    if not value.type.tensor_type.HasField("shape"):
        return f"input {value.name!r} (of unknown rank)"
    shape = "x".join(str(label) if label != "" else "?" for label in labels)
    axes = [str(axis) for axis, label in enumerate(labels) if not isinstance(label, int)]
    named = axes[0] if len(axes) == 1 else f"{', '.join(axes[:-1])} and {axes[-1]}"
    return f"input {value.name!r} ({shape}: {'axis' if len(axes) == 1 else 'axes'} {named})"


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w./:@+-]+", name) else f"'{name}'"
