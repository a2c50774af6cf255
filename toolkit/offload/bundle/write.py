"""Write a bundle: the segments of one or more plans, shared files once, and the manifest."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from offload.bundle.batchability import why_alone
from offload.bundle.boundary_ops import boundary_ops
from offload.bundle.bundle import (
    BUNDLE_FORMAT,
    MANIFEST,
    PLAN,
    Bundle,
    BundleFile,
    file_digest,
    manifest_digest,
    open_bundle,
)
from offload.bundle.layers import GRAPH, TimedGraph
from offload.bundle.model_inputs import signature, value_of
from offload.bundle.subgraph import Part, open_defaults
from offload.bundle.weights import write_parts
from offload.errors import InputError
from offload.files import staged_folder
from offload.graph.load import Model
from offload.graph.model import Graph, Tensor
from offload.graph.onnx_file import extent, external_tensors
from offload.planning.plan import Plan, Segment, Side
from offload.planning.plan_set import PlanSet
from offload.records import to_json


def dedupe(plan_set: PlanSet) -> PlanSet:
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

    if len(plan_set.plans) == 1:
        return plan_set
    return replace(
        plan_set,
        plans=tuple(
            replace(plan, segments=tuple(named(plan, segment) for segment in plan.segments))
            for plan in plan_set.plans
        ),
    )


def sizes(bundle: Bundle) -> tuple[int, int]:
    """Bytes of the parts and weights of a complete bundle: as stored, and as a bundle per plan.

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
    return (
        sum(file.size_bytes for file in stored),
        sum(part_bytes[s.part] for plan in bundle.plans for s in plan.segments),
    )


BOTH = tuple(Side)
Prove = Callable[[Bundle], Iterable[str]]


def write_bundle(
    model: Model,
    graph: Graph,
    plans: PlanSet | Plan,
    path: Path,
    types: Mapping[str, Tensor] | None = None,
    prove: Prove = lambda _: (),
    seconds: Mapping[Side, tuple[float, ...]] | None = None,
) -> Bundle:
    """Write the segments of plans, the plans, the layers and the manifest to a folder, atomically.

    Segments and weights that several plans share are stored once. An older bundle at the path is
    replaced.

    Args:
        model: the source.
        graph: its layers.
        plans: one plan, or several with the ranges of bandwidth or the share of frames of each.
        path: the bundle's folder.
        types: types of tensors that shape inference can't follow, from the engine.
        prove: may run the segments, raise an error, and add files; returns the files' names.
        seconds: of each layer on each side, for pictures of the plans.

    Raises:
        InputError: the path exists and is not a bundle, a tensor at the cut can't cross, or an
            input or output of the model is an optional or a sequence of sequences.
        OSError: the disk refuses (full, read-only).
    """
    if path.exists() and not (path / MANIFEST).is_file():
        raise InputError(f"{path} exists and is not a bundle: choose another name or remove it")
    inputs, outputs = signature(model, graph)
    defaults = tuple(map(value_of, model.values.defaults.values()))
    plan_set = dedupe(plans if isinstance(plans, PlanSet) else PlanSet((plans,)))
    segments = {s.file: (plan, s) for plan in plan_set.plans for s in plan.segments}
    operations = {file: boundary_ops(plan, segment) for file, (plan, segment) in segments.items()}
    parts = {
        file: Part(s.nodes, *operations[file].bare(s.inputs, s.outputs))
        for file, (_, s) in segments.items()
    }
    plan_files = [PLAN, *(f"plan-{number}.json" for number in range(1, len(plan_set.plans)))]
    with staged_folder(path) as staged:
        written = write_parts(
            model,
            parts,
            staged,
            types or {},
            {file: changes.insert for file, changes in operations.items()},
            once=len(plan_set.plans) > 1,
        )
        for name, plan in zip(plan_files, plan_set.plans, strict=True):
            (staged / name).write_text(json.dumps(plan.to_json(), indent=1))
        TimedGraph(graph, seconds or {}).save(staged / GRAPH)
        proofs = prove(Bundle(staged, "", plan_set, inputs, outputs, defaults, ()))
        names = (*plan_files, GRAPH, *(file.name for file in written), *proofs)
        files = [_describe(staged / name, model, parts.get(name)) for name in names]
        content = {
            "format": BUNDLE_FORMAT,
            "model": {
                "name": graph.name,
                "sha256": graph.digest,
                "ir_version": model.proto.ir_version,
                "opset_import": {
                    entry.domain or "ai.onnx": entry.version for entry in model.proto.opset_import
                },
            },
            "plans": plan_files,
            "ranges": to_json(plan_set.ranges),
            **({"slower": to_json(plan_set.slower)} if plan_set.slower else {}),
            **({"shares": to_json(plan_set.shares)} if plan_set.shares else {}),
            **({"rows": plan_set.rows} if plan_set.rows else {}),
            "inputs": to_json(inputs),
            "outputs": to_json(outputs),
            "defaults": to_json(defaults),
            "files": {file.name: to_json(file) for file in files},
        }
        manifest = {"digest": manifest_digest(content), **content}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return open_bundle(path, BOTH)


def _describe(path: Path, model: Model, part: Part | None) -> BundleFile:
    """The manifest's entry of a file, which holds a part or something else."""
    # The names say whose they are: device-0.onnx, server.weights, shared.weights, plan.json.
    sides = tuple(side for side in Side if path.name.startswith(side.value)) or BOTH
    if path.name == GRAPH:
        sides = ()  # no side needs it to run
    return BundleFile(
        path.name,
        file_digest(path),
        path.stat().st_size,
        sides,
        open_defaults(model, part) if part else (),
        why_alone(model, part) if part and sides == (Side.SERVER,) else "",
    )
