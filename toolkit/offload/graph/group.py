"""Group nodes into layers: what must stay together, in an order without cycles."""

from collections.abc import Iterable, Mapping, Sequence

import networkx as nx


def grouped(
    order: Sequence[int], edges: Mapping[int, Iterable[int]], together: Iterable[tuple[int, int]]
) -> list[tuple[int, ...]]:
    """Partition nodes into groups whose quotient has no cycle, in topological order.

    Pairs in `together` share a group. Joining two nodes may close a cycle through others
    (a -> b -> c with a and c together); then all of the cycle becomes one group. Groups follow
    the order of their first nodes as far as dependencies allow; nodes in a group ascend in
    `order`.

    Args:
        order: the nodes in a topological order.
        edges: for each node, the nodes that directly need it.
        together: pairs of nodes to keep in one group.

    Complexity: O((V + E) log V).
    """
    place = {node: position for position, node in enumerate(order)}
    bound: nx.Graph[int] = nx.Graph()
    bound.add_nodes_from(order)
    bound.add_edges_from(together)
    leader: dict[int, int] = {}
    for component in nx.connected_components(bound):
        leader.update(dict.fromkeys(component, min(component, key=place.__getitem__)))
    quotient: nx.DiGraph[int] = nx.DiGraph()
    quotient.add_nodes_from(leader.values())
    quotient.add_edges_from(
        (leader[a], leader[b]) for a in order for b in edges.get(a, ()) if leader[a] != leader[b]
    )
    acyclic = nx.condensation(quotient)
    members: dict[int, list[int]] = {}
    for node in order:
        members.setdefault(acyclic.graph["mapping"][leader[node]], []).append(node)
    ranked = nx.lexicographical_topological_sort(acyclic, key=lambda g: place[members[g][0]])
    return [tuple(members[group]) for group in ranked]
