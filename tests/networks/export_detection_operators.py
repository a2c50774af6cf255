"""Detection operators for torchvision beside PyTorch for CPUs: import this before torchvision.

The wheel of torchvision is built for CUDA and its compiled operators don't load here. The two that
detectors need, `nms` and `roi_align`, are written with PyTorch's own operators. They run only while
an exporter traces; in the file they become NonMaxSuppression and RoiAlign.
"""

from importlib import import_module

import torch
from torch import Tensor

_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define(
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"
)


def nms(found: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better box overlaps by more than the threshold."""
    area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    order, kept = scores.argsort(descending=True), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(found[best, :2], found[rest, :2])
        high = torch.minimum(found[best, 2:], found[rest, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = rest[shared / (area[best] + area[rest] - shared) <= iou_threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def regions(
    features: Tensor,
    rois: Tensor,
    scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Bilinear samples of the features in each region (rows of batch, x1, y1, x2, y2)."""
    plain = roi_align._roi_align.__wrapped__  # not compiled: it is to be traced
    return plain(features, rois, scale, height, width, max(sampling_ratio, 2), aligned)


_library.impl("nms", nms, "CPU")
_library.impl("roi_align", regions, "CPU")

extension = import_module("torchvision.extension")
boxes = import_module("torchvision.ops.boxes")
roi_align = import_module("torchvision.ops.roi_align")


def _has_operators() -> bool:
    return True


def _assert_operators() -> None:
    pass


for module in (extension, boxes, roi_align):
    module._has_ops = _has_operators
    module._assert_has_ops = _assert_operators
