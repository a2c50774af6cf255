"""Give the toolkit's check of splits its engine: onnxruntime."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from offload.bundle.engine_input import EngineInput, part_input, whole_input
from offload.bundle.sample_inputs import Feeds, GivenInputs, inputs_of, sample
from offload.bundle.subgraph import part_of
from offload.bundle.verify import Check, Opener, Runner, distinct_cuts
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.read import read_graph

from offload_runtimes.engine import EngineOptions, load_once
from offload_runtimes.engine.profiling import tensor_types

_SETS_OF_INPUTS = 2


def opener(options: EngineOptions) -> Opener:
    """An engine for `Check`: files are run as `options` say, optimisation aside."""

    def open_model(source: EngineInput, optimize: bool) -> Runner:
        engine = load_once(source, replace(options, optimize=optimize))
        required = [value.name for value in engine.inputs]
        open_names = [value.name for value in engine.defaults]
        names = [value.name for value in engine.outputs]

        def run(feeds: Feeds) -> Mapping[str, Any]:
            given = [*required, *(name for name in open_names if name in feeds)]
            answers = engine.run(None, {name: feeds[name] for name in given if name in feeds})
            return dict(zip(names, answers, strict=True))

        return run

    return open_model


def missing_types(model: Model, graph: Graph) -> dict[str, Tensor]:
    """Types, as onnxruntime infers them, of tensors that ONNX's shape inference can't follow.

    Operators of other vendors are known to the engine only. Nothing is asked, and {} returned,
    for models without such.

    Raises:
        InputError: onnxruntime refuses the model.
    """
    types = model.types
    unknown = [name for name in graph.producer if types.tensor(name).dtype is None]
    unknown = [name for name in unknown if types.can_cross(name)]
    if not unknown:
        return {}
    whole = part_of(graph, range(len(graph.layers)), unknown)
    with temporary_folder() as folder:
        found = tensor_types(part_input(model, whole, folder / "whole.onnx"))
    return {name: _tensor(name, found[name].type, found[name].shape) for name in unknown}


def _tensor(name: str, kind: str, shape: tuple[int | str | None, ...] | None) -> Tensor:
    dtype = kind[len("tensor(") : -1] if kind.startswith("tensor(") else None
    sizes = tuple(size if isinstance(size, int) else None for size in shape) if shape else None
    return Tensor(name, dtype, sizes, None)


def check_of(model: Model, options: EngineOptions, given: GivenInputs | None = None) -> Check:
    """All that checking a model's cuts needs: its layers, its types, live inputs.

    Raises:
        InputError: onnxruntime refuses the model, or no inputs were found that it accepts.
    """
    engine = opener(options)
    graph = read_graph(model)
    whole = engine(whole_input(model), False) if model.path else None
    accepts: Runner = whole or (lambda _: {})
    inputs = sample(inputs_of(model), accepts, given or GivenInputs(), _SETS_OF_INPUTS)
    return Check(model, graph, engine, inputs, missing_types(model, graph))


def cuts_of(check: Check, most: int) -> tuple[frozenset[int], ...]:
    """The cuts that `offload verify` tries: at most so many, evenly spread."""
    return distinct_cuts(check.graph, most)
