"""Layers in numpy: convolution, pooling, LRN; used on sample images to scale the weights.

Arrays are float32, images are N x C x H x W. The code is written for clarity, not for speed: it
runs on a few images per model.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float32]


def windows(x: Array, kernel: int, stride: int, pads: tuple[int, int], fill: float) -> Array:
    """All K x K windows of the last two axes: N x C x H' x W' x K x K (a view of a padded copy)."""
    padded = np.pad(x, ((0, 0), (0, 0), pads, pads), constant_values=fill)
    return sliding_window_view(padded, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]


def conv(x: Array, weight: Array, stride: int = 1, pad: int = 0, groups: int = 1) -> Array:
    """Convolve N x C x H x W with O x C/groups x K x K, zero padding; no bias.

    One matrix product per image and group: many small ones are slow when the cores are busy.
    """
    out, _, kernel, _ = weight.shape
    flat = weight.reshape(groups, out // groups, -1)
    patches_of = windows(x, kernel, stride, (pad, pad), 0.0)
    rows, cols = patches_of.shape[2:4]
    output = np.empty((len(x), groups, out // groups, rows * cols), np.float32)
    for image, patches in enumerate(patches_of):
        output[image] = flat @ patches.transpose(0, 3, 4, 1, 2).reshape(groups, -1, rows * cols)
    return output.reshape(len(x), out, rows, cols)


def max_pool(x: Array, kernel: int, stride: int, pads: tuple[int, int]) -> Array:
    """Largest value of each window; padding never wins."""
    largest: Array = windows(x, kernel, stride, pads, -np.inf).max(axis=(4, 5))
    return largest


def average_pool(x: Array, kernel: int, stride: int, pads: tuple[int, int] = (0, 0)) -> Array:
    """Mean of each window; padding does not count."""
    total = windows(x, kernel, stride, pads, 0.0).sum(axis=(4, 5))
    covered = windows(np.ones_like(x[:1, :1]), kernel, stride, pads, 0.0).sum(axis=(4, 5))
    mean: Array = total / covered
    return mean


def per_channel(numbers: Array, like: Array, axis: int = 1) -> Array:
    """Reshape C numbers so that they broadcast along `axis` of `like`; one number stays one."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return numbers.reshape(shape) if numbers.ndim else numbers


def lrn(x: Array, size: int, alpha: float, beta: float, bias: float) -> Array:
    """Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3)."""
    before = (size - 1) // 2
    squares = np.pad(x * x, ((0, 0), (before, size - 1 - before), (0, 0), (0, 0)))
    total = sliding_window_view(squares, size, axis=1).sum(axis=-1)
    scaled: Array = (x / (bias + alpha / size * total) ** beta).astype(np.float32)
    return scaled
