"""Check splits with onnxruntime as the engine."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from offload.bundle.engine_input import EngineInput, whole_input, with_inner_outputs
from offload.bundle.model_inputs import inputs_of
from offload.bundle.sample_inputs import Feeds, SampleOptions, sample
from offload.bundle.verify import Check, Opener, Runner, distinct_cuts
from offload.files import temporary_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.read import read_graph

from offload_runtimes.engine import EngineOptions
from offload_runtimes.engine.profiling import tensor_types
from offload_runtimes.measure.machine import THIS_MACHINE, Machine

_SETS_OF_INPUTS = 2


def opener(options: EngineOptions, machine: Machine = THIS_MACHINE) -> Opener:
    """An engine for `Check` that runs models with these options, except for `optimize`."""

    def open_model(source: EngineInput, optimize: bool) -> Runner:
        loaded = machine.load(source, replace(options, optimize=optimize), once=True)

        def run(feeds: Feeds) -> Mapping[str, Any]:
            outputs = loaded.run({name: feeds[name] for name in loaded.inputs if name in feeds})
            return dict(zip(loaded.outputs, outputs, strict=True))

        return run

    return open_model


def missing_types(model: Model, graph: Graph) -> dict[str, Tensor]:
    """Types, as onnxruntime infers them, of tensors that ONNX's shape inference can't follow.

    Only the engine knows operators of other vendors. {} for models without such operators.

    Raises:
        InputError: onnxruntime refuses the model.
    """
    types = model.types
    unknown = [name for name in graph.producer if types.tensor(name).dtype is None]
    unknown = [name for name in unknown if types.can_cross(name)]
    if not unknown:
        return {}
    with temporary_folder() as folder:
        values = tensor_types(with_inner_outputs(model, unknown, folder / "whole.onnx"))
    tensors = {}
    for name in unknown:
        kind, shape = values[name].type, values[name].shape
        dtype = kind[len("tensor(") : -1] if kind.startswith("tensor(") else None
        sizes = tuple(s if isinstance(s, int) else None for s in shape) if shape else None
        tensors[name] = Tensor(name, dtype, sizes, None)
    return tensors


def check_of(
    model: Model,
    options: EngineOptions,
    inputs: SampleOptions | None = None,
    machine: Machine = THIS_MACHINE,
) -> Check:
    """The check of a model's cuts: its layers, its types, and inputs that it accepts.

    Raises:
        InputError: onnxruntime refuses the model, or no inputs were found that it accepts.
    """
    engine = opener(options, machine)
    graph = read_graph(model)
    whole = engine(whole_input(model), False) if model.path else None
    accepts: Runner = whole or (lambda _: {})
    samples = sample(inputs_of(model), accepts, inputs or SampleOptions(), _SETS_OF_INPUTS)
    return Check(model, graph, engine, samples, missing_types(model, graph))


def cuts_of(check: Check, most: int) -> tuple[frozenset[int], ...]:
    """The cuts that `offload verify` tries: at most `most`, evenly spread."""
    return distinct_cuts(check.graph, most)
