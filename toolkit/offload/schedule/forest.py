"""Optimal order of an out-forest, uploads allowed anywhere, and of what reduces to one."""

import numpy as np

from offload.schedule.composites import Floats, Nodes, Pieces
from offload.schedule.reduce import Reduced, bits


def forest_order(parent: Nodes, compute_s: Floats, upload_s: Floats) -> Nodes:
    """Node numbers in an optimal order; ties go to the smaller number.

    `parent[v]` is less than v, and -1 for a root. O(n log^2 n) worst case, near linear in
    practice.
    """
    pieces = Pieces(parent, compute_s, upload_s)
    pieces.glue_many()
    pieces.glue_rest()
    return pieces.order()


def laminar_order(reduced: Reduced) -> list[int] | None:
    """Optimal order of the cut points when any two signatures are nested or disjoint, else None.

    The blocks then form an out-forest under inclusion, even where the graph itself is no tree.
    """
    owner = [-1] * len(reduced.cuts)
    masks = sorted(reduced.blocks, key=lambda mask: (-mask.bit_count(), mask & -mask))
    parent: list[int] = []
    for node, mask in enumerate(masks):
        members = list(bits(mask))
        above = owner[members[0]]
        if any(owner[bit] != above for bit in members):
            return None
        for bit in members:
            owner[bit] = node
        parent.append(above)
    bit_of = {mask: bit for bit, mask in enumerate(reduced.signature)}
    compute_s = np.array([reduced.blocks[mask] for mask in masks])
    upload_s = [reduced.upload_s[bit_of[mask]] if mask in bit_of else 0.0 for mask in masks]
    order = forest_order(np.array(parent, dtype=np.intp), compute_s, np.array(upload_s))
    return [bit_of[masks[node]] for node in order.tolist() if masks[node] in bit_of]
