"""The random wiring is a Watts-Strogatz graph made acyclic, of the paper's size."""

import networkx as nx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from offload_models.randwire import build, small_world


def test_every_seed_has_a_wiring_of_its_own_and_the_papers_size() -> None:
    """The paper: 5.6 +- 0.1 million over its seeds; three deviations are allowed."""
    graphs = [build(seed).graph for seed in (1, 2)]
    for graph in graphs:
        assert abs(sum(int(np.prod(i.dims)) for i in graph.initializer) / 1e6 - 5.6) < 0.3
    one, other = ([list(node.input) for node in graph.node] for graph in graphs)
    assert one != other


rings = st.tuples(st.integers(6, 40), st.sampled_from([2, 4]), st.integers(0, 1000))


@given(rings, st.floats(0, 1))
def test_a_small_world_keeps_its_edges_and_has_no_cycle(
    ring: tuple[int, int, int], rewiring: float
) -> None:
    nodes, neighbours, seed = ring
    sources = small_world(np.random.default_rng(seed), nodes, neighbours, rewiring)
    assert list(sources) == list(range(nodes))
    assert sum(map(len, sources.values())) == nodes * neighbours // 2
    for node, before in sources.items():
        assert list(before) == sorted(set(before))
        assert all(0 <= source < node for source in before)


@given(rings)
def test_without_rewiring_a_small_world_is_the_ring_lattice(ring: tuple[int, int, int]) -> None:
    nodes, neighbours, seed = ring
    sources = small_world(np.random.default_rng(seed), nodes, neighbours, 0.0)
    lattice = nx.watts_strogatz_graph(nodes, neighbours, 0.0)
    ours = {frozenset((v, w)) for v, before in sources.items() for w in before}
    assert ours == {frozenset(edge) for edge in lattice.edges}
