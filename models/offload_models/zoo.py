"""The model zoo: the registry of all models that can be built by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import onnx
from offload.errors import InputError
from offload.files import write_bytes

from offload_models import (
    alexnet,
    densenet,
    googlenet,
    mobilenet,
    multi_stream,
    randwire,
    resnet,
    squeezenet,
)
from offload_models.onnx_topologies import build_topology

Builder = Callable[..., onnx.ModelProto]
"""A function of `seed` and `batch` (a size, or a name to keep it dynamic)."""


@dataclass(frozen=True, slots=True)
class ZooModel:
    """An architecture that can be built with seeded live weights.

    Attributes:
        name: its name in the zoo.
        build: the builder.
        summary: one line for a table.
        paper: authors, year and title of its source.
        parameters: published number of trained parameters: weights, biases, scales and shifts,
            without running means and variances.
    """

    name: str
    build: Builder
    summary: str
    paper: str
    parameters: int


MODELS = (
    ZooModel(
        "alexnet_parallel",
        alexnet.build,
        "two independent towers up to the classifier",
        "Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks",
        60_965_224,
    ),
    ZooModel(
        "densenet121",
        densenet.build,
        "every layer of a block reads all before it",
        "Huang et al. 2017, Densely connected convolutional networks",
        7_978_856,
    ),
    ZooModel(
        "googlenet",
        googlenet.build,
        "nine Inception modules of four parallel branches",
        "Szegedy et al. 2015, Going deeper with convolutions",
        6_998_552,
    ),
    ZooModel(
        "mobilenet_v2",
        mobilenet.build,
        "inverted residuals of depthwise convolutions",
        "Sandler et al. 2018, MobileNetV2: Inverted residuals and linear bottlenecks",
        3_504_872,
    ),
    ZooModel(
        "multi_stream",
        multi_stream.build,
        "HO-RCNN: human, object and pairwise streams",
        "Chao et al. 2018, Learning to detect human-object interactions",
        120_246_248,
    ),
    ZooModel(
        "randwire",
        randwire.build,
        "random wiring WS(4, 0.75), N = 32, small regime",
        "Xie et al. 2019, Exploring randomly wired neural networks for image recognition",
        5_600_000,
    ),
    ZooModel(
        "resnet18",
        resnet.build_18,
        "8 basic blocks with shortcuts",
        "He et al. 2016, Deep residual learning for image recognition",
        11_689_512,
    ),
    ZooModel(
        "resnet50",
        resnet.build_50,
        "16 bottleneck blocks with shortcuts",
        "He et al. 2016, Deep residual learning for image recognition",
        25_557_032,
    ),
    ZooModel(
        "squeezenet",
        squeezenet.build,
        "fire modules: squeeze, then expand in two branches",
        "Iandola et al. 2016, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters",
        1_248_424,
    ),
)
LIGHT = (
    ("alexnet", "bvlc_alexnet", 60_965_224, "AlexNet in one tower", "Krizhevsky et al. 2012"),
    ("densenet121", "densenet121", 7_978_856, "DenseNet-121 from Caffe", "Huang et al. 2017"),
    ("inception_v1", "inception_v1", 6_998_552, "GoogLeNet from Caffe", "Szegedy et al. 2015"),
    ("inception_v2", "inception_v2", 11_194_984, "BN-Inception", "Ioffe & Szegedy 2015"),
    ("resnet50", "resnet50", 25_557_032, "ResNet-50 with BatchNorm nodes", "He et al. 2016"),
    ("shufflenet", "shufflenet", 1_393_320, "grouped convolutions", "Zhang et al. 2018"),
    ("squeezenet", "squeezenet", 1_235_496, "SqueezeNet 1.1", "Iandola et al. 2016"),
    ("vgg19", "vgg19", 143_667_240, "a chain of 19 layers", "Simonyan & Zisserman 2015"),
    ("zfnet512", "zfnet512", 87_250_536, "AlexNet made wider", "Zeiler & Fergus 2014"),
)
LIGHT_MODELS = tuple(
    ZooModel(
        f"light_{name}",
        partial(build_topology, file),
        f"{summary}, from the onnx package",
        paper,
        count,
    )
    for name, file, count, summary, paper in LIGHT
)
ZOO: Mapping[str, ZooModel] = MappingProxyType(
    {model.name: model for model in (*MODELS, *LIGHT_MODELS)}
)


def build(name: str, seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """Build a model of the zoo with the live weights of this seed.

    Raises:
        InputError: the zoo has no such model, the seed is negative, or the batch is not a size
            or name that the model supports.
    """
    if name not in ZOO:
        raise InputError(f"the zoo has no model named {name!r}: choose one of {', '.join(ZOO)}")
    if seed < 0:
        raise InputError(f"the seed is {seed}: give 0 or more")
    if batch == "" or (isinstance(batch, int) and batch < 1):
        raise InputError(f"the batch is {batch!r}: give 1 or more, or a name to keep it dynamic")
    return ZOO[name].build(seed, batch)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the model to a file, atomically.

    Raises:
        InputError: the folder does not exist, or the path is a folder.
        OSError: the file can't be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of the .onnx file to write")
    write_bytes(path, model.SerializeToString())
