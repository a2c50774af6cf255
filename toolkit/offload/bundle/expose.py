"""A plan's segments without its encodings, to look at what crosses and to try other ways."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import onnx

from offload.bundle.bundle import Bundle
from offload.bundle.dress import clothes, expose
from offload.bundle.extract import Part
from offload.bundle.weights import write_parts
from offload.graph.load import Model
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


def write_bare(
    model: Model,
    plan: Plan,
    folder: Path,
    types: Mapping[str, Tensor],
    shown: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> None:
    """Write the segments of a plan from its model, without encodings.

    Args:
        model: the source.
        plan: of that model.
        folder: where the segments' files go.
        types: types of tensors that shape inference can't follow.
        shown: by segment, tensors that it makes and gives as outputs too.

    Raises:
        InputError: a tensor at the cut can't cross.
    """
    parts = {
        s.file: Part(s.nodes, s.inputs, tuple(dict.fromkeys((*s.outputs, *shown.get(s.id, ())))))
        for s in bare_segments(plan)
    }
    write_parts(model, parts, folder, types)


def write_exposed(bundle: Bundle, folder: Path) -> None:
    """Write the segments of a bundle that is complete, its encodings taken out again."""
    for path in bundle.path.glob("*.weights"):
        shutil.copyfile(path, folder / path.name)
    for segment in bare_segments(bundle.plan):
        worn = clothes(bundle.plan, bundle.plan.segment(segment.id))
        proto = onnx.load(bundle.segment_path(segment.part), load_external_data=False)
        expose(proto, (*worn.encodes, *worn.decodes))
        onnx.save(proto, folder / segment.file)
