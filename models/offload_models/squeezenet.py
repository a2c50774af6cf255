"""SqueezeNet: fire modules, which squeeze to few channels and expand in two branches."""

import onnx

from offload_models.builder import LayerOutput, Network

# Per module: squeeze 1x1, expand 1x1, expand 3x3 (table 1 of the paper).
FIRES = {
    "fire2": (16, 64, 64),
    "fire3": (16, 64, 64),
    "fire4": (32, 128, 128),
    "fire5": (32, 128, 128),
    "fire6": (48, 192, 192),
    "fire7": (48, 192, 192),
    "fire8": (64, 256, 256),
    "fire9": (64, 256, 256),
}
POOL_AFTER = {"fire4": "pool4", "fire8": "pool8"}
# The mean over a channel's image follows the last ReLU and reduces the spread of the scores.
SCORE_GAIN = 8.0


def build(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """SqueezeNet 1.0, `image` Nx3x224x224 -> `logits` Nx1000.

    Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer: SqueezeNet: AlexNet-level accuracy with 50x
    fewer parameters and <0.5 MB model size, 2016. Pooling rounds its sizes up, as in the
    published Caffe model.
    """
    net = Network("squeezenet", seed, batch)
    x = net.conv_relu("conv1", net.input("image", (3, 224, 224)), 96, 7, stride=2)
    x = net.max_pool("pool1", x, 3, 2, pads=(0, 1))
    for name, widths in FIRES.items():
        x = fire(net, name, x, widths)
        if name in POOL_AFTER:
            x = net.max_pool(POOL_AFTER[name], x, 3, 2, pads=(0, 1))
    x = net.relu("conv10/relu", net.conv("conv10", x, 1000, 1, gain=SCORE_GAIN))
    return net.model(net.flatten("logits", net.global_average_pool("pool10", x)))


def fire(net: Network, name: str, x: LayerOutput, widths: tuple[int, int, int]) -> LayerOutput:
    """Squeeze, then two branches joined along the channels."""
    squeeze, one, three = widths
    x = net.conv_relu(f"{name}/squeeze1x1", x, squeeze, 1)
    branches = [
        net.conv_relu(f"{name}/expand1x1", x, one, 1),
        net.conv_relu(f"{name}/expand3x3", x, three, 3, pad=1),
    ]
    return net.concat(f"{name}/concat", branches)
