"""DenseNet-121: every layer of a block reads all layers before it."""

import onnx

from offload_models.builder import LayerOutput, Network

DEPTHS = (6, 12, 24, 16)
GROWTH = 32


def build(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """DenseNet-121, `image` Nx3x224x224 -> `logits` Nx1000.

    Huang, Liu, van der Maaten, Weinberger: Densely connected convolutional networks, CVPR 2017.
    Batch normalisation stays a separate node before each 1x1 convolution, because other nodes
    read its input too; the others are folded, as exporters do for inference.
    """
    net = Network("densenet121", seed, batch)
    x = net.conv_relu("conv0", net.input("image", (3, 224, 224)), 64, 7, stride=2, pad=3)
    x = net.max_pool("pool0", x, 3, 2, pads=(1, 1))
    for index, depth in enumerate(DEPTHS, start=1):
        x = dense_block(net, f"block{index}", x, depth)
        if index < len(DEPTHS):
            x = transition(net, f"transition{index}", x)
    return net.model(net.classify(norm_relu(net, "norm5", x)))


def dense_block(net: Network, name: str, x: LayerOutput, depth: int) -> LayerOutput:
    """Each layer adds 32 channels to what all later layers read."""
    known = [x]
    for layer in range(1, depth + 1):
        at = f"{name}/layer{layer}"
        read = known[0] if layer == 1 else net.concat(f"{at}/concat", known)
        y = net.conv_relu(f"{at}/conv1", norm_relu(net, f"{at}/norm1", read), 4 * GROWTH, 1)
        known.append(net.conv(f"{at}/conv2", y, GROWTH, 3, pad=1))
    return net.concat(f"{name}/concat", known)


def transition(net: Network, name: str, x: LayerOutput) -> LayerOutput:
    """Half the channels, half the height and width."""
    x = net.conv(f"{name}/conv", norm_relu(net, f"{name}/norm", x), x.channels // 2, 1)
    return net.average_pool(f"{name}/pool", x, 2, 2)


def norm_relu(net: Network, name: str, x: LayerOutput) -> LayerOutput:
    """Batch normalisation and its ReLU `<name>/relu`."""
    return net.relu(f"{name}/relu", net.batch_norm(name, x))
