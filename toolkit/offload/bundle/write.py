"""Write a bundle: the segments of one or more plans, shared files once, and the manifest."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx

from offload.bundle.batchability import why_alone
from offload.bundle.boundary_ops import boundary_ops
from offload.bundle.bundle import (
    BUNDLE_FORMAT,
    MANIFEST,
    PLANS_FORMAT,
    Bundle,
    InputDefault,
    ModelValue,
    file_digest,
    manifest_digest,
    open_bundle,
    plan_names,
)
from offload.bundle.subgraph import Part, open_defaults
from offload.bundle.weights import write_parts
from offload.errors import InputError
from offload.files import staged_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.onnx_file import extent, external_tensors
from offload.graph.onnx_types import declared_shape, type_name
from offload.planning.plan import Plan, Segment, Side
from offload.planning.plan_set import EVERYWHERE, BandwidthRange, PlanSet
from offload.records import to_json


def dedupe(ranged: PlanSet) -> PlanSet:
    """Plans whose equal segments share a part.

    Segments are equal if they are on the same side and compute the same nodes between the same
    tensors in the same encodings; their ids may differ. A single plan stays unchanged.
    """
    names: dict[Side, dict[object, str]] = {side: {} for side in Side}

    def named(plan: Plan, segment: Segment) -> Segment:
        known = names[segment.side]
        content = replace(segment, id="", common=""), boundary_ops(plan, segment)
        name = known.setdefault(content, f"{segment.side.value}-{len(known)}")
        return replace(segment, common="" if name == segment.id else name)

    if len(ranged.plans) == 1:
        return ranged
    return replace(
        ranged,
        plans=tuple(
            replace(plan, segments=tuple(named(plan, segment) for segment in plan.segments))
            for plan in ranged.plans
        ),
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a bundle's parts and weights, together and as one bundle for each plan."""

    together_bytes: int
    separate_bytes: int


def sizes(bundle: Bundle) -> Sizes:
    """Bytes of the plans of a complete bundle, stored together and stored separately.

    O(bytes of the parts without their weights).
    """
    part_bytes = {}
    for segment in bundle.parts():
        path = bundle.segment_path(segment.part)
        proto = onnx.load(path, load_external_data=False)
        extents = {extent(tensor) for tensor in external_tensors(proto.graph, proto.functions)}
        weight_bytes = sum(each.length_bytes for each in extents)
        part_bytes[segment.part] = path.stat().st_size + weight_bytes
    stored = [file for file in bundle.files if file.name.endswith((".onnx", ".weights"))]
    return Sizes(
        sum(file.size_bytes for file in stored),
        sum(part_bytes[s.part] for plan in bundle.plans for s in plan.segments),
    )


BOTH = tuple(Side)
Prove = Callable[[Bundle], Iterable[str]]


def write_bundle(
    model: Model,
    graph: Graph,
    plan: Plan,
    path: Path,
    types: Mapping[str, Tensor] | None = None,
    prove: Prove = lambda _: (),
) -> Bundle:
    """Write a bundle of one plan; see `write_plans`."""
    return write_plans(model, graph, PlanSet((plan,)), path, types, prove)


def write_plans(
    model: Model,
    graph: Graph,
    ranged: PlanSet,
    path: Path,
    types: Mapping[str, Tensor] | None = None,
    prove: Prove = lambda _: (),
) -> Bundle:
    """Write the segments of plans, the plans and the manifest to a folder, atomically.

    Segments and weights that several plans share are stored once. An older bundle at the path is
    replaced.

    Args:
        model: the source.
        graph: its layers.
        ranged: the plans, and the range of bandwidth of each.
        path: the bundle's folder.
        types: types of tensors that shape inference can't follow, from the engine.
        prove: may run the segments, raise an error, and add files; returns the files' names.

    Raises:
        InputError: the path exists and is not a bundle, a tensor at the cut can't cross, or an
            input or output of the model is an optional or a sequence of sequences.
        OSError: the disk refuses (full, read-only).
    """
    if path.exists() and not (path / MANIFEST).is_file():
        raise InputError(f"{path} exists and is not a bundle: choose another name or remove it")
    ends = signature(model, graph)
    check_types((*ends[0], *ends[1]))
    ranged = dedupe(ranged)
    with staged_folder(path) as staged:
        written, batch, defaults = _write_segments(model, ranged.plans, staged, types or {})
        plans = plan_names(len(ranged.plans))
        for name, plan in zip(plans, ranged.plans, strict=True):
            (staged / name).write_text(json.dumps(plan.to_json(), indent=1))
        sides = dict.fromkeys(plans, BOTH)
        for file in written:  # device-0.onnx, server.weights, shared.weights
            sides[file.name] = tuple(s for s in Side if file.name.startswith(s.value)) or BOTH
        proofs = prove(Bundle(staged, "", ranged, *ends, ()))
        sides.update(dict.fromkeys(proofs, BOTH))
        source = {
            "name": graph.name,
            "sha256": graph.digest,
            "ir_version": model.proto.ir_version,
            "opset_import": {e.domain or "ai.onnx": e.version for e in model.proto.opset_import},
        }
        seal(staged, source, ends, sides, ranged.ranges, batch, defaults)
    return open_bundle(path, BOTH)


def _write_segments(
    model: Model, plans: Sequence[Plan], folder: Path, types: Mapping[str, Tensor]
) -> tuple[tuple[Path, ...], dict[str, str], tuple[InputDefault, ...]]:
    """Write the files of all segments; returns them, `Bundle.batch` and the optional inputs."""
    segments = {s.file: (plan, s) for plan in plans for s in plan.segments}
    operations = {file: boundary_ops(plan, segment) for file, (plan, segment) in segments.items()}
    parts = {
        file: Part(s.nodes, *operations[file].bare(s.inputs, s.outputs))
        for file, (_, s) in segments.items()
    }
    once = len(plans) > 1
    files = write_parts(model, parts, folder, types, lambda name: operations[name].insert, once)
    served = {s.part: s.file for _, s in segments.values() if s.side is Side.SERVER}
    batch = {part: why_alone(model, parts[file]) for part, file in served.items()}
    users = {Path(file).stem: open_defaults(model, part) for file, part in parts.items()}
    defaults = tuple(
        InputDefault(value_of(value), tuple(part for part, names in users.items() if name in names))
        for name, value in model.values.defaults.items()
    )
    return files, batch, defaults


def signature(model: Model, graph: Graph) -> tuple[tuple[ModelValue, ...], tuple[ModelValue, ...]]:
    """Inputs and outputs as onnxruntime lists them, dynamic dimensions still dynamic."""
    outputs = []
    for value in model.proto.graph.output:
        inferred = model.types.inferred(value.name)
        if not value.type.WhichOneof("value") and inferred is not None:
            value = onnx.ValueInfoProto(name=value.name, type=inferred)  # declared without a type
        outputs.append(value_of(value))
    return tuple(value_of(model.values.inputs[name]) for name in graph.inputs), tuple(outputs)


def check_types(values: Iterable[ModelValue]) -> None:
    """Check that a session supports the types of inputs and outputs.

    Raises:
        InputError: an optional, or a sequence of sequences.
    """
    for value in values:
        if "optional(" in value.type or "seq(seq(" in value.type:
            raise InputError(
                f"{value.name!r} is of type {value.type}, which a session does not support:"
                " make it a tensor or a sequence of tensors in the model, or leave it out"
            )


def seal(
    folder: Path,
    source: Mapping[str, Any],
    signature: tuple[tuple[ModelValue, ...], tuple[ModelValue, ...]],
    sides: Mapping[str, tuple[Side, ...]],
    ranges: Sequence[BandwidthRange] = EVERYWHERE,
    batch: Mapping[str, str] = MappingProxyType({}),
    defaults: Sequence[InputDefault] = (),
) -> None:
    """Write the manifest of a folder: the digest, size and sides of each file, and metadata.

    `batch` and `defaults` are the attributes of `Bundle`.
    """
    inputs, outputs = signature
    count = len({r.plan for r in ranges})
    several = {"plans": plan_names(count), "ranges": [r.to_json() for r in ranges]}
    content = {
        "format": PLANS_FORMAT if count > 1 else BUNDLE_FORMAT,
        "model": dict(source),
        **(several if count > 1 else {}),
        "inputs": to_json(inputs),
        "outputs": to_json(outputs),
        **({"batch": dict(batch)} if batch else {}),
        **({"defaults": to_json(defaults)} if defaults else {}),
        "files": {
            name: {
                "sha256": file_digest(folder / name),
                "size_bytes": (folder / name).stat().st_size,
                "sides": [side.value for side in needed],
            }
            for name, needed in sides.items()
        },
    }
    manifest = {"digest": manifest_digest(content), **content}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def value_of(info: onnx.ValueInfoProto) -> ModelValue:
    """A graph input or output as onnxruntime lists it, dynamic dimensions still dynamic."""
    return ModelValue(info.name, type_name(info.type), declared_shape(info.type))
