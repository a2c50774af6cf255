"""Random layer graphs and costs, for tests that need no ONNX file."""

from collections.abc import Sequence

from hypothesis import strategies as st
from offload.graph.model import Graph, Layer, Tensor
from offload.planning.cut_costs import Costs


def graph_of(
    edges: Sequence[tuple[int, int]], count: int, extra_outputs: Sequence[int] = ()
) -> Graph:
    """A graph of `count` layers; layer i makes tensor `t{i}`; sources read the input `x`."""
    needs: list[list[int]] = [[] for _ in range(count)]
    for before, after in edges:
        needs[after].append(before)
    layers = tuple(
        Layer(
            f"l{i}", "Op", (i,), tuple(f"t{j}" for j in sorted(set(needs[i]))) or ("x",), (f"t{i}",)
        )
        for i in range(count)
    )
    used = {before for before, _ in edges}
    ends = sorted({i for i in range(count) if i not in used} | set(extra_outputs))
    names = ("x", *(f"t{i}" for i in range(count)))
    tensors = {name: Tensor(name, "float", (1, 8), 32) for name in names}
    return Graph("random", "0" * 64, ("x",), tuple(f"t{i}" for i in ends), layers, tensors)


times = st.integers(0, 20).map(float)
# A tensor at a cut takes time to send: the scheduling problem is not defined without.
upload_times = st.integers(1, 20).map(float)


@st.composite
def graphs(draw: st.DrawFn, max_layers: int = 8) -> Graph:
    count = draw(st.integers(1, max_layers))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2 * count)) if pairs else []
    outputs = draw(st.lists(st.integers(0, count - 1), max_size=2))
    return graph_of(edges, count, outputs)


@st.composite
def graphs_with_costs(draw: st.DrawFn, max_layers: int = 8) -> tuple[Graph, Costs]:
    graph = draw(graphs(max_layers))
    count = len(graph.layers)
    seconds = st.lists(times, min_size=count, max_size=count).map(tuple)
    names = list(graph.tensors)
    return graph, Costs(
        draw(seconds),
        draw(seconds),
        {name: draw(upload_times) for name in names},
        {name: draw(times) for name in names},
        dict.fromkeys(names, 32),
    )


def closed_sets(graph: Graph) -> list[frozenset[int]]:
    """Every down-closed set of layers, by brute force."""
    count = len(graph.layers)
    closed = []
    for bits in range(1 << count):
        chosen = frozenset(i for i in range(count) if bits >> i & 1)
        if all(p in chosen for layer in chosen for p in graph.predecessors[layer]):
            closed.append(chosen)
    return closed
