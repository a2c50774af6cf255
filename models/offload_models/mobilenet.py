"""MobileNetV2: inverted residuals of depthwise convolutions."""

import onnx

from offload_models.builder import LayerOutput, Network

# Expansion, channels, repeats, first stride (table 2 of the paper).
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def build(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """MobileNetV2 of width 1, `image` Nx3x224x224 -> `logits` Nx1000.

    Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted residuals and linear
    bottlenecks, CVPR 2018. Batch normalisation is folded into the convolutions, as exporters do
    for inference.
    """
    net = Network("mobilenet_v2", seed, batch)
    x = conv_relu6(net, "stem", net.input("image", (3, 224, 224)), 32, 3, stride=2)
    block = 0
    for expansion, channels, repeats, first_stride in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = inverted_residual(net, f"block{block}", x, expansion, channels, stride)
            block += 1
    x = conv_relu6(net, "head", x, 1280, 1)
    return net.model(net.classify(x))


def inverted_residual(
    net: Network, name: str, x: LayerOutput, expansion: int, channels: int, stride: int
) -> LayerOutput:
    """Expand, convolve each channel alone, project; add the input where shapes allow."""
    y, wide = x, x.channels * expansion
    if expansion > 1:
        y = conv_relu6(net, f"{name}/expand", y, wide, 1)
    y = conv_relu6(net, f"{name}/depthwise", y, wide, 3, stride, groups=wide)
    y = net.conv(f"{name}/project", y, channels, 1)
    return net.add(f"{name}/add", x, y) if stride == 1 and x.channels == channels else y


def conv_relu6(
    net: Network,
    name: str,
    x: LayerOutput,
    channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
) -> LayerOutput:
    """A convolution that keeps the size (up to its stride), and its ReLU6 `<name>/relu6`."""
    x = net.conv(name, x, channels, kernel, stride, kernel // 2, groups)
    return net.relu6(f"{name}/relu6", x)
