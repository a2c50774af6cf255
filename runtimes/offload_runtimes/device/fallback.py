"""Which segments are left to compute when the other side can't be waited for."""

from collections.abc import Callable, Iterable

from offload.planning.plan import Plan, Segment


def rest(plan: Plan, is_here: Callable[[str], bool], wanted: Iterable[str]) -> tuple[Segment, ...]:
    """The fewest segments, of either side, that make the wanted tensors from those at hand.

    Args:
        plan: the plan.
        is_here: whether a tensor is at hand.
        wanted: names of tensors.

    Returns:
        Segments in an order in which they can run; O(segments + tensors).
    """
    makers = {name: segment for segment in plan.segments for name in segment.outputs}
    order: dict[str, Segment] = {}

    def need(name: str) -> None:
        segment = makers.get(name)
        if segment is None or segment.id in order or is_here(name):
            return
        for before in segment.inputs:
            need(before)
        order[segment.id] = segment

    for name in wanted:
        need(name)
    return tuple(order.values())
