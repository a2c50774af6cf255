"""What several plans have in common, stored once; and what that saves."""

from dataclasses import dataclass, replace

import onnx

from offload.bundle.bundle import Bundle
from offload.bundle.dress import clothes
from offload.graph.external import extent, external_tensors
from offload.plan.plan import Plan, Segment, Side
from offload.plan.ranges import Ranged


def in_common(ranged: Ranged) -> Ranged:
    """The plans with their parts named: a part for each different segment of a side.

    Segments are the same that compute the same nodes between the same tensors, encoded alike;
    their ids may differ. A single plan stays as it is.
    """
    names: dict[Side, dict[object, str]] = {side: {} for side in Side}

    def named(plan: Plan, segment: Segment) -> Segment:
        known = names[segment.side]
        content = replace(segment, id="", common=""), clothes(plan, segment)
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
