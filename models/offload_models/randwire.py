"""RandWire: a network whose wiring is a random graph."""

from collections.abc import Mapping

import numpy as np
import onnx

from offload_models.builder import LayerOutput, Network

NODES = 32
NEIGHBOURS = 4
REWIRING = 0.75
CHANNELS = 78
# Seed 0 draws a wiring of the size that the paper reports on average.
FIRST_WIRING = 20


def build(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """RandWire-WS(4, 0.75), N = 32, small regime, `image` Nx3x224x224 -> `logits` Nx1000.

    Xie, Kirillov, Girshick, He: Exploring randomly wired neural networks for image recognition,
    ICCV 2019, table 1: 16 nodes of 78 channels, then 32 of 156, then 32 of 312. The seed draws
    the wiring too, so the parameters vary by a few percent, 5.6 +- 0.1 million in the paper.
    """
    net = Network("randwire", seed, batch)
    wiring = np.random.default_rng(FIRST_WIRING + seed)
    x = net.conv_relu("conv1", net.input("image", (3, 224, 224)), CHANNELS // 2, 3, 2, pad=1)
    x = net.conv("conv2", x, CHANNELS, 3, 2, pad=1)
    for index, nodes in enumerate((NODES // 2, NODES, NODES)):
        sources = small_world(wiring, nodes, NEIGHBOURS, REWIRING)
        x = stage(net, f"stage{index + 3}", x, CHANNELS << index, sources)
    x = net.conv_relu("head", net.relu("last/relu", x), 1280, 1)
    return net.model(net.classify(x))


def small_world(
    rng: np.random.Generator, nodes: int, neighbours: int, rewiring: float
) -> Mapping[int, tuple[int, ...]]:
    """Watts-Strogatz graph (Watts & Strogatz 1998) made acyclic: each node's sources, ascending.

    Nodes stand on a ring and know their `neighbours` nearest; in rounds by distance, each edge
    to a clockwise neighbour is rewired with the given probability to a node not yet joined.
    Every edge then leads from the smaller number to the larger.
    """
    reach = range(1, neighbours // 2 + 1)
    edges = {frozenset((v, (v + away) % nodes)) for away in reach for v in range(nodes)}
    for away in reach:
        for v in range(nodes):
            old = frozenset((v, (v + away) % nodes))
            free = [w for w in range(nodes) if w != v and frozenset((v, w)) not in edges]
            if old in edges and free and rng.random() < rewiring:
                edges.remove(old)
                edges.add(frozenset((v, int(rng.choice(free)))))
    return {
        v: tuple(sorted(w for w in range(v) if frozenset((v, w)) in edges)) for v in range(nodes)
    }


def stage(
    net: Network, name: str, x: LayerOutput, channels: int, sources: Mapping[int, tuple[int, ...]]
) -> LayerOutput:
    """One random graph: nodes without a source halve the size of `x`; unread nodes are averaged."""
    outputs: dict[int, LayerOutput] = {}
    for node, before in sources.items():
        at = f"{name}/node{node}"
        read = gather(net, at, [(v, outputs[v]) for v in before]) if before else x
        outputs[node] = node_transform(net, at, read, channels, stride=1 if before else 2)
    used = {v for before in sources.values() for v in before}
    return net.mean(f"{name}/output", [outputs[v] for v in sources if v not in used])


def gather(net: Network, name: str, values: list[tuple[int, LayerOutput]]) -> LayerOutput:
    """Weighted sum of the sources; each weight is a sigmoid, between 0 and 1."""
    weights = 1 / (1 + np.exp(-net.rng.normal(0.0, 1.0, len(values))))
    parts = [
        net.weigh(f"{name}/from{v}", x, float(weight))
        for (v, x), weight in zip(values, weights, strict=True)
    ]
    return parts[0] if len(parts) == 1 else net.sum(f"{name}/sum", parts)


def node_transform(
    net: Network, name: str, x: LayerOutput, channels: int, stride: int
) -> LayerOutput:
    """ReLU, then a separable 3x3 convolution: each channel alone, then across channels."""
    x = net.relu(f"{name}/relu", x)
    x = net.conv(f"{name}/depthwise", x, x.channels, 3, stride, pad=1, groups=x.channels)
    return net.conv(f"{name}/pointwise", x, channels, 1)
