"""Export torchvision's networks with random weights: `python export_torchvision.py NAME FOLDER`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import export_detection_operators  # noqa: F401  before torchvision
import torch
from export_common import from_torch, main
from torch import Tensor
from torchvision import models


def classifier(
    name: str,
    folder: Path,
    *,
    dynamo: bool,
    size: int = 224,
    batch: bool = False,
    opset: int | None = None,
) -> None:
    """A network from a picture to 1000 scores; with `batch`, its first axis is open."""
    more: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        more = {"init_weights": True, "aux_logits": False}
    from_torch(
        folder,
        models.get_model(name, weights=None, **more),
        {"image": torch.rand(1, 3, size, size)},
        ["scores"],
        dynamo=dynamo,
        dynamic={"image": {0: "batch"}} if batch else None,
        opset=opset,
    )


class Detector(torch.nn.Module):
    """A detector of one picture: boxes, scores and labels of what it finds."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.inner([image])[0]
        return found["boxes"], found["scores"], found["labels"]


def detector(name: str, folder: Path, **thresholds: float) -> None:
    """A detector; thresholds are low, because random weights give no high score."""
    inner = models.get_model(name, weights=None, weights_backbone=None, **thresholds)
    picture = torch.rand(3, 320, 320)
    from_torch(
        folder, Detector(inner), {"image": picture}, ["boxes", "scores", "labels"], dynamo=False
    )


class Segmenter(torch.nn.Module):
    """Scores of each pixel."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> Tensor:
        return self.inner(image)["out"]


def segmenter(name: str, folder: Path) -> None:
    """A network from a picture to scores of each pixel."""
    inner = models.get_model(name, weights=None, weights_backbone=None, num_classes=21)
    feeds = {"image": torch.rand(1, 3, 256, 256)}
    from_torch(folder, Segmenter(inner), feeds, ["scores"], dynamo=False, opset=17)


def video(folder: Path) -> None:
    """A network of 3-D convolutions over 8 frames."""
    feeds = {"frames": torch.rand(1, 3, 8, 64, 64)}
    from_torch(folder, models.get_model("r3d_18", weights=None), feeds, ["scores"])


NETWORKS: dict[str, Callable[[Path], None]] = {
    "resnet18": partial(classifier, "resnet18", dynamo=True),
    "resnet50-legacy": partial(classifier, "resnet50", dynamo=False, opset=17),
    "mobilenet_v3_small": partial(classifier, "mobilenet_v3_small", dynamo=True, batch=True),
    "efficientnet_b0-legacy": partial(classifier, "efficientnet_b0", dynamo=False, batch=True),
    "densenet121": partial(classifier, "densenet121", dynamo=True),
    "googlenet-legacy": partial(classifier, "googlenet", dynamo=False),
    "shufflenet_v2": partial(classifier, "shufflenet_v2_x1_0", dynamo=True, batch=True),
    "swin_t": partial(classifier, "swin_t", dynamo=True),
    "convnext_tiny-legacy": partial(classifier, "convnext_tiny", dynamo=False),
    "r3d_18": video,
    "deeplabv3_mobilenet": partial(segmenter, "deeplabv3_mobilenet_v3_large"),
    "fasterrcnn_mobilenet": partial(
        detector,
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        box_score_thresh=0.011,
        box_detections_per_img=20,
    ),
    "ssdlite320": partial(
        detector, "ssdlite320_mobilenet_v3_large", score_thresh=0.011, detections_per_img=50
    ),
}

torch.manual_seed(0)
main(NETWORKS)
