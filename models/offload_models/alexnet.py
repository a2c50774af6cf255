"""AlexNet-Parallel: two towers of convolutions, joined only before the classifier."""

import onnx

from offload_models.builder import LayerOutput, Network


def build(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """AlexNet as two independent towers, `image` Nx3x224x224 -> `logits` Nx1000.

    Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural
    networks, NIPS 2012. There each of two GPUs holds half of the kernels, and they exchange data
    once before the classifier, in the third layer. Here they do not, as in the offloading papers
    that call it AlexNet-Parallel (Zhang et al., UbiComp 2020), so the towers are separate paths.
    The classical cut is the two outputs `tower1/pool5` and `tower2/pool5`, or any earlier pair.
    """
    net = Network("alexnet_parallel", seed, batch)
    image = net.input("image", (3, 224, 224))
    x = net.concat("towers", [tower(net, name, image) for name in ("tower1", "tower2")])
    x = net.dense_relu("fc6", net.flatten("flatten", x), 4096)
    x = net.dense_relu("fc7", x, 4096)
    return net.model(net.logits("logits", x, 1000))


def tower(net: Network, name: str, x: LayerOutput) -> LayerOutput:
    """Half of AlexNet's kernels in each of five convolutions: 128 channels of 6 x 6."""
    x = net.conv_relu(f"{name}/conv1", x, 48, 11, stride=4, pad=2)
    x = net.lrn(f"{name}/norm1", x, alpha=5e-4, bias=2.0)
    x = net.max_pool(f"{name}/pool1", x, 3, 2)
    x = net.conv_relu(f"{name}/conv2", x, 128, 5, pad=2)
    x = net.lrn(f"{name}/norm2", x, alpha=5e-4, bias=2.0)
    x = net.max_pool(f"{name}/pool2", x, 3, 2)
    x = net.conv_relu(f"{name}/conv3", x, 192, 3, pad=1)
    x = net.conv_relu(f"{name}/conv4", x, 192, 3, pad=1)
    x = net.conv_relu(f"{name}/conv5", x, 128, 3, pad=1)
    return net.max_pool(f"{name}/pool5", x, 3, 2)
