"""Group nodes into layers: what must stay together, what belongs to its reader, without cycles."""

from collections.abc import Container, Iterable, Mapping, Sequence

import networkx as nx


def grouped(
    order: Sequence[int],
    edges: Mapping[int, Iterable[int]],
    together: Iterable[tuple[int, int]],
    absorbed: Container[int] = frozenset(),
) -> list[tuple[int, ...]]:
    """Partition nodes into groups whose quotient has no cycle, in topological order.

    First, pairs in `together` share a group. Joining two nodes may close a cycle through others
    (a -> b -> c with a and c together); then all of the cycle becomes one group. Nothing else is
    joined to it.

    Then, a group whose nodes are all in `absorbed` joins its readers where they are one group:
    each group becomes a maximal fanout-free cone. What several groups read stays a group of its
    own, so this step closes no cycle: only the last nodes of a cone are read from outside it.

    Groups follow the order of their first nodes as far as dependencies allow; nodes in a group
    ascend in `order`.

    Args:
        order: the nodes in a topological order.
        edges: for each node, the nodes that directly need it.
        together: pairs of nodes to keep in one group.
        absorbed: nodes that need not be told apart from the group that reads them.

    Complexity: O((V + E) log V).
    """
    place = {node: position for position, node in enumerate(order)}
    bound: nx.Graph[int] = nx.Graph()
    bound.add_nodes_from(order)
    bound.add_edges_from(together)
    atom_of: dict[int, int] = {}
    for component in nx.connected_components(bound):
        atom_of.update(dict.fromkeys(component, min(component, key=place.__getitem__)))
    atoms = nx.condensation(_quotient(order, edges, atom_of))
    atom_of = {node: atoms.graph["mapping"][atom] for node, atom in atom_of.items()}

    readers: dict[int, set[int]] = {atom: set(atoms.successors(atom)) for atom in atoms}
    fixed = {atom_of[node] for node in order if node not in absorbed}
    cone: dict[int, int] = {}
    for atom in reversed(list(nx.topological_sort(atoms))):
        found = {cone[reader] for reader in readers[atom]}
        cone[atom] = found.pop() if len(found) == 1 and atom not in fixed else atom

    group_of = {node: cone[atom] for node, atom in atom_of.items()}
    members: dict[int, list[int]] = {}
    for node in order:
        members.setdefault(group_of[node], []).append(node)
    groups = _quotient(order, edges, group_of)
    ranked = nx.lexicographical_topological_sort(groups, key=lambda g: place[members[g][0]])
    return [tuple(members[group]) for group in ranked]


def _quotient(
    order: Sequence[int], edges: Mapping[int, Iterable[int]], group_of: Mapping[int, int]
) -> "nx.DiGraph[int]":
    quotient: nx.DiGraph[int] = nx.DiGraph()
    quotient.add_nodes_from(group_of.values())
    quotient.add_edges_from(
        (group_of[a], group_of[b])
        for a in order
        for b in edges.get(a, ())
        if group_of[a] != group_of[b]
    )
    return quotient
