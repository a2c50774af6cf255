"""A plan's segments without its encodings, to look at what crosses and to try other ways."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import onnx

from offload.bundle.bundle import Bundle
from offload.bundle.dress import clothes, expose
from offload.bundle.engine_input import EngineInput, part_input, whole_input
from offload.bundle.extract import Part
from offload.graph.load import Model, load_model
from offload.graph.model import Tensor
from offload.plan.plan import Plan, Segment


def bare_segments(plan: Plan) -> tuple[Segment, ...]:
    """The segments that compute, device's first, with the model's own tensors at their ends."""
    found = []
    for segment in plan.segments:
        inputs, outputs = clothes(plan, segment).bare(segment.inputs, segment.outputs)
        made = tuple(name for name in outputs if name not in inputs)
        if segment.nodes or made:
            found.append(replace(segment, inputs=inputs, outputs=outputs))
    return tuple(found)


def bare_inputs(
    model: Model,
    plan: Plan,
    folder: Path,
    types: Mapping[str, Tensor],
    shown: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> dict[str, EngineInput]:
    """The segments of a plan from its model, without encodings, by file name.

    Args:
        model: the source.
        plan: of that model.
        folder: where files go, if the model keeps its weights inside.
        types: types of tensors that shape inference can't follow.
        shown: by segment, tensors that it makes and gives as outputs too.

    Raises:
        InputError: a tensor at the cut can't cross.
    """
    found = {}
    for s in bare_segments(plan):
        outputs = tuple(dict.fromkeys((*s.outputs, *shown.get(s.id, ()))))
        part = Part(s.nodes, s.inputs, outputs)
        found[s.file] = part_input(model, part, folder / s.file, types)
    return found


def exposed_inputs(bundle: Bundle) -> dict[str, EngineInput]:
    """The segments of a bundle that is complete, its encodings taken out again, by file name."""
    found = {}
    for segment in bare_segments(bundle.plan):
        worn = clothes(bundle.plan, bundle.plan.segment(segment.id))
        proto = onnx.load(bundle.segment_path(segment.part), load_external_data=False)
        expose(proto, (*worn.encodes, *worn.decodes))
        found[segment.file] = whole_input(load_model(proto, bundle.path))
    return found
