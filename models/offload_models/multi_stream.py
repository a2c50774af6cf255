"""HO-RCNN: three streams, for the person, the object and their positions."""

import onnx

from offload_models.builder import LayerOutput, Network

INTERACTIONS = 600


def build(seed: int = 0, batch: int | str = 1, hidden: int = 4096) -> onnx.ModelProto:
    """HO-RCNN, `human` and `object` Nx3x227x227, `pairwise` Nx2x64x64 -> `logits` Nx600.

    Chao, Liu, Liu, Zeng, Deng: Learning to detect human-object interactions, WACV 2018. Human
    and object streams are CaffeNets on the cropped boxes; the pairwise stream sees the two boxes
    as a two-channel picture. Each stream scores the 600 interactions of HICO-DET; the scores are
    added. The streams share nothing before that sum. `hidden` is the width of the two large
    layers before the scores: 4096 as published, less for a light model of the same topology.
    """
    net = Network("multi_stream", seed, batch)
    streams = [appearance(net, name, hidden) for name in ("human", "object")]
    streams.append(pairwise(net, "pairwise"))
    return net.model(net.sum("logits", streams))


def appearance(net: Network, name: str, hidden: int) -> LayerOutput:
    """CaffeNet (Jia et al. 2014) on one box, with 600 scores in place of 1000."""
    x = net.conv_relu(f"{name}/conv1", net.input(name, (3, 227, 227)), 96, 11, stride=4)
    x = net.lrn(f"{name}/norm1", net.max_pool(f"{name}/pool1", x, 3, 2))
    x = net.conv_relu(f"{name}/conv2", x, 256, 5, pad=2, groups=2)
    x = net.lrn(f"{name}/norm2", net.max_pool(f"{name}/pool2", x, 3, 2))
    x = net.conv_relu(f"{name}/conv3", x, 384, 3, pad=1)
    x = net.conv_relu(f"{name}/conv4", x, 384, 3, pad=1, groups=2)
    x = net.conv_relu(f"{name}/conv5", x, 256, 3, pad=1, groups=2)
    x = net.flatten(f"{name}/flatten", net.max_pool(f"{name}/pool5", x, 3, 2))
    x = net.dense_relu(f"{name}/fc7", net.dense_relu(f"{name}/fc6", x, hidden), hidden)
    return net.logits(f"{name}/scores", x, INTERACTIONS)


def pairwise(net: Network, name: str) -> LayerOutput:
    """A small network on the interaction pattern: first channel the person, second the object."""
    x = net.conv_relu(f"{name}/conv1", net.input(name, (2, 64, 64)), 64, 5)
    x = net.max_pool(f"{name}/pool1", x, 3, 2, pads=(0, 1))
    x = net.conv_relu(f"{name}/conv2", x, 32, 5)
    x = net.max_pool(f"{name}/pool2", x, 3, 2, pads=(0, 1))
    x = net.dense_relu(f"{name}/fc1", net.flatten(f"{name}/flatten", x), 256)
    return net.logits(f"{name}/scores", x, INTERACTIONS)
