"""Write a bundle: split the model along its plans, store what they share once, seal the files."""

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
    """The plans with their parts named: a part for each different segment of a side.

    Segments are the same that compute the same nodes between the same tensors, encoded alike;
    their ids may differ. A single plan stays as it is.
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
    """Bytes of a bundle's parts and weights: as they are, and as a bundle a plan would take."""

    together_bytes: int
    separate_bytes: int


def sizes(bundle: Bundle) -> Sizes:
    """What the plans of a bundle take together, and what they would take apart.

    The bundle must be complete. O(bytes of the parts without their weights).
    """
    whole_bytes = {s.part: _whole_bytes(bundle, s) for s in bundle.parts()}
    kept = [file for file in bundle.files if file.name.endswith((".onnx", ".weights"))]
    return Sizes(
        sum(file.size_bytes for file in kept),
        sum(whole_bytes[s.part] for plan in bundle.plans for s in plan.segments),
    )


def _whole_bytes(bundle: Bundle, segment: Segment) -> int:
    """A part's bytes with the weights that are kept outside."""
    path = bundle.segment_path(segment.part)
    proto = onnx.load(path, load_external_data=False)
    outside = {extent(tensor) for tensor in external_tensors(proto.graph, proto.functions)}
    return path.stat().st_size + sum(found.length_bytes for found in outside)


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
    """Write a bundle of one plan; as `write_plans`."""
    return write_plans(model, graph, PlanSet((plan,)), path, types, prove)


def write_plans(
    model: Model,
    graph: Graph,
    ranged: PlanSet,
    path: Path,
    types: Mapping[str, Tensor] | None = None,
    prove: Prove = lambda _: (),
) -> Bundle:
    """Write plans' segments, the plans and the manifest to a folder, whole or not at all.

    What plans have in common is stored once: segments as files, weights of several parts in
    weight files. An older bundle of the same name is replaced; anything else there is left
    alone. `types` are those of tensors that shape inference can't follow, as the engine knows
    them; `prove` may run the segments, refuse them, and add files of its own to the folder,
    which it names.

    Raises:
        InputError: something that is no bundle is in the way, a tensor at the cut can't cross,
            or an input or output of the model is an optional or a sequence of sequences.
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
        sides = {**dict.fromkeys(plans, BOTH), **{file.name: _sides(file.name) for file in written}}
        proofs = prove(Bundle(staged, "", ranged, *ends, ()))
        sides.update(dict.fromkeys(proofs, BOTH))
        seal(staged, _source(model, graph), ends, sides, ranged.ranges, batch, defaults)
    return open_bundle(path, BOTH)


def _write_segments(
    model: Model, plans: Sequence[Plan], folder: Path, types: Mapping[str, Tensor]
) -> tuple[tuple[Path, ...], dict[str, str], tuple[InputDefault, ...]]:
    """The files, for each of the server's parts why its rows must stay alone, and the defaults."""
    segments = {s.file: (plan, s) for plan in plans for s in plan.segments}
    wearing = {file: boundary_ops(plan, segment) for file, (plan, segment) in segments.items()}
    parts = {
        file: Part(s.nodes, *wearing[file].bare(s.inputs, s.outputs))
        for file, (_, s) in segments.items()
    }
    once = len(plans) > 1
    files = write_parts(model, parts, folder, types, lambda name: wearing[name].put_on, once)
    served = {s.part: s.file for _, s in segments.values() if s.side is Side.SERVER}
    batch = {part: why_alone(model, parts[file]) for part, file in served.items()}
    users = {Path(file).stem: open_defaults(model, part) for file, part in parts.items()}
    defaults = tuple(
        InputDefault(value_of(value), tuple(part for part, names in users.items() if name in names))
        for name, value in model.values.defaults.items()
    )
    return files, batch, defaults


def signature(model: Model, graph: Graph) -> tuple[tuple[ModelValue, ...], tuple[ModelValue, ...]]:
    """Inputs and outputs as onnxruntime would list them, dynamic dimensions still dynamic."""
    inputs = {value.name: value for value in model.proto.graph.input}
    return (
        tuple(value_of(inputs[name]) for name in graph.inputs),
        tuple(value_of(_typed(model, value)) for value in model.proto.graph.output),
    )


def check_types(values: Iterable[ModelValue]) -> None:
    """Refuse inputs and outputs of types that a session cannot take or give.

    Raises:
        InputError: an optional, or a sequence of sequences.
    """
    for value in values:
        if "optional(" in value.type or "seq(seq(" in value.type:
            raise InputError(
                f"{value.name!r} is of type {value.type}, which a session can neither take nor"
                " give: make it a tensor or a sequence of tensors in the model, or leave it out"
            )


def _typed(model: Model, output: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An output with its type; tools append outputs by name alone."""
    inferred = model.types.inferred(output.name)
    if output.type.WhichOneof("value") or inferred is None:
        return output
    return onnx.ValueInfoProto(name=output.name, type=inferred)


def seal(
    folder: Path,
    source: Mapping[str, Any],
    signature: tuple[tuple[ModelValue, ...], tuple[ModelValue, ...]],
    sides: Mapping[str, tuple[Side, ...]],
    ranges: Sequence[BandwidthRange] = EVERYWHERE,
    batch: Mapping[str, str] = MappingProxyType({}),
    defaults: Sequence[InputDefault] = (),
) -> None:
    """Write the manifest of a folder's files: digests, sizes, and which side needs each.

    `batch` says for each of the server's parts why its rows must stay alone (`Bundle.batch`);
    `defaults` are the inputs with a default.
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


def _sides(name: str) -> tuple[Side, ...]:
    """Who needs a file, by its name: `device-0.onnx`, `server.weights`, `shared.weights`."""
    return tuple(side for side in Side if name.startswith(side.value)) or BOTH


def _source(model: Model, graph: Graph) -> dict[str, Any]:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.proto.opset_import}
    return {
        "name": graph.name,
        "sha256": graph.digest,
        "ir_version": model.proto.ir_version,
        "opset_import": opsets,
    }


def value_of(info: onnx.ValueInfoProto) -> ModelValue:
    """A graph input or output as onnxruntime would list it, dynamic dimensions still dynamic."""
    return ModelValue(info.name, type_name(info.type), declared_shape(info.type))
