"""Export timm's networks with seeded random weights: `python export_timm.py NAME FOLDER`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import export_detection_operators  # noqa: F401  before torchvision, which timm imports
import timm
import torch
from export_common import from_torch, main


def picture(
    name: str, folder: Path, *, dynamo: bool, size: int = 224, open_sizes: bool = False
) -> None:
    """A network from a picture to scores; with `open_sizes`, height and width are open."""
    with timm.layers.set_exportable(True):
        module = timm.create_model(name, pretrained=False)
    axes = {0: "batch", 2: "height", 3: "width"}
    from_torch(
        folder,
        module,
        {"image": torch.rand(1, 3, size, size)},
        ["scores"],
        dynamo=dynamo,
        dynamic={"image": axes} if open_sizes else None,
        opset=None if dynamo else 17,
    )


NETWORKS: dict[str, Callable[[Path], None]] = {
    "vit_tiny": partial(picture, "vit_tiny_patch16_224", dynamo=True),
    "mobilenetv4": partial(picture, "mobilenetv4_conv_small", dynamo=True),
    "convnextv2_atto-legacy": partial(picture, "convnextv2_atto", dynamo=False),
    # Padding "same" as TensorFlow has it, computed in the graph where sizes are open.
    "efficientnetv2_same-legacy": partial(
        picture, "tf_efficientnetv2_b0", dynamo=False, open_sizes=True
    ),
    "mobilevit_xxs": partial(picture, "mobilevit_xxs", dynamo=True, size=256),
    "fastvit_t8": partial(picture, "fastvit_t8", dynamo=True, size=256),
    "repvit": partial(picture, "repvit_m0_9", dynamo=True),
    "maxvit_pico-legacy": partial(picture, "maxvit_rmlp_pico_rw_256", dynamo=False, size=256),
    "swinv2_cr_tiny": partial(picture, "swinv2_cr_tiny_ns_224", dynamo=True),
    "regnety_002-legacy": partial(picture, "regnety_002", dynamo=False),
}

torch.manual_seed(0)
main(NETWORKS)
