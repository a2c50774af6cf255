"""Residual networks of 18 and 50 layers."""

from collections.abc import Callable

import onnx

from offload_models.builder import LayerOutput, Network

Block = Callable[[Network, str, LayerOutput, int, int], LayerOutput]


def build_18(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """ResNet-18, `image` Nx3x224x224 -> `logits` Nx1000.

    He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016. Batch
    normalisation is folded into the convolutions, as exporters do for inference.
    """
    return residual(basic, (2, 2, 2, 2), Network("resnet18", seed, batch))


def build_50(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """ResNet-50, `image` Nx3x224x224 -> `logits` Nx1000.

    He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016; a bottleneck's
    stride stands in its 3x3 convolution, as in every current framework. Batch normalisation is
    folded into the convolutions, as exporters do for inference.
    """
    return residual(bottleneck, (3, 4, 6, 3), Network("resnet50", seed, batch))


def residual(block: Block, depths: tuple[int, ...], net: Network) -> onnx.ModelProto:
    """Stem, four stages of blocks, classifier."""
    x = net.input("image", (3, 224, 224))
    x = net.conv_relu("conv1", x, 64, 7, stride=2, pad=3)
    x = net.max_pool("pool1", x, 3, 2, pads=(1, 1))
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            x = block(net, f"layer{stage + 1}/{index}", x, 64 << stage, stride)
    return net.model(net.classify(x))


def basic(net: Network, name: str, x: LayerOutput, width: int, stride: int) -> LayerOutput:
    """Two 3x3 convolutions and the shortcut."""
    y = net.conv_relu(f"{name}/conv1", x, width, 3, stride, pad=1)
    y = net.conv(f"{name}/conv2", y, width, 3, pad=1)
    return join(net, name, x, y, stride)


def bottleneck(net: Network, name: str, x: LayerOutput, width: int, stride: int) -> LayerOutput:
    """1x1, 3x3, 1x1 convolutions and the shortcut; four times `width` channels come out."""
    y = net.conv_relu(f"{name}/conv1", x, width, 1)
    y = net.conv_relu(f"{name}/conv2", y, width, 3, stride, pad=1)
    y = net.conv(f"{name}/conv3", y, 4 * width, 1)
    return join(net, name, x, y, stride)


def join(net: Network, name: str, x: LayerOutput, y: LayerOutput, stride: int) -> LayerOutput:
    """ReLU of the branch plus the shortcut, which is projected where the shapes differ."""
    if stride > 1 or x.channels != y.channels:
        x = net.conv(f"{name}/shortcut", x, y.channels, 1, stride)
    return net.relu(f"{name}/relu", net.add(f"{name}/add", x, y))
