"""GoogLeNet: nine Inception modules of four parallel branches."""

import onnx

from offload_models.builder import LayerOutput, Network

# Per module: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection (table 1 of the paper).
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOL_AFTER = {"3b": "pool3", "4e": "pool4"}


def build(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """GoogLeNet without the auxiliary classifiers, `image` Nx3x224x224 -> `logits` Nx1000.

    Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: Going deeper with
    convolutions, CVPR 2015. Pooling rounds its sizes up, as in the published Caffe model. The
    classical cut of a module is the outputs of its four branches: `inception_3a/1x1/relu`,
    `inception_3a/3x3/relu`, `inception_3a/5x5/relu` and `inception_3a/pool_proj/relu`.
    """
    net = Network("googlenet", seed, batch)
    x = stem(net, net.input("image", (3, 224, 224)))
    for module, widths in MODULES.items():
        x = inception(net, f"inception_{module}", x, widths)
        if module in POOL_AFTER:
            x = net.max_pool(POOL_AFTER[module], x, 3, 2, pads=(0, 1))
    return net.model(net.classify(x))


def stem(net: Network, x: LayerOutput) -> LayerOutput:
    """The chain before the first module: 192 channels of 28 x 28."""
    x = net.conv_relu("conv1/7x7", x, 64, 7, stride=2, pad=3)
    x = net.lrn("pool1/norm", net.max_pool("pool1", x, 3, 2, pads=(0, 1)))
    x = net.conv_relu("conv2/reduce", x, 64, 1)
    x = net.lrn("conv2/norm", net.conv_relu("conv2/3x3", x, 192, 3, pad=1))
    return net.max_pool("pool2", x, 3, 2, pads=(0, 1))


def inception(net: Network, name: str, x: LayerOutput, widths: tuple[int, ...]) -> LayerOutput:
    """Four branches over one input, joined along the channels."""
    one, three_reduce, three, five_reduce, five, projection = widths
    branches = [net.conv_relu(f"{name}/1x1", x, one, 1)]
    reduced = net.conv_relu(f"{name}/3x3_reduce", x, three_reduce, 1)
    branches.append(net.conv_relu(f"{name}/3x3", reduced, three, 3, pad=1))
    reduced = net.conv_relu(f"{name}/5x5_reduce", x, five_reduce, 1)
    branches.append(net.conv_relu(f"{name}/5x5", reduced, five, 5, pad=2))
    pooled = net.max_pool(f"{name}/pool", x, 3, 1, pads=(1, 1))
    branches.append(net.conv_relu(f"{name}/pool_proj", pooled, projection, 1))
    return net.concat(f"{name}/concat", branches)
