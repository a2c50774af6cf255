"""Random weight initialisation that keeps a network live: different inputs, different outputs.

With plain random weights the output of a deep ReLU network hardly depends on the input. So weights
are He-initialised (He et al. 2015), then shifted and scaled per channel by the statistics of a few
sample images, as a batch normalisation does in a trained network (data-dependent initialisation:
Salimans & Kingma 2016; LSUV: Mishkin & Matas 2015).
"""

from math import prod

import numpy as np

from offload_models.kernels import Array

# Scores of this standard deviation make a softmax neither flat nor one-hot.
LOGIT_STD = 2.0
# How far a channel's mean is moved to 0. With 0, deep networks return the same output for every
# input; with 1, rounding errors grow from layer to layer.
CENTRE = 0.4


def sample_images(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Four sample images: Gaussian noise, flat patches, uniform noise, near grey.

    Together they cover the usual inputs: normalised photographs, both kinds of test noise, and
    blank frames. Shape: 4 x C x H x W.
    """
    channels, height, width = shape
    patch = 16
    coarse = rng.standard_normal((channels, -(-height // patch), -(-width // patch)))
    patches = coarse.repeat(patch, axis=1).repeat(patch, axis=2)[:, :height, :width]
    noise = rng.standard_normal(shape)
    grey = 0.1 * rng.standard_normal(shape)
    return np.stack([noise, patches, rng.random(shape), grey]).astype(np.float32)


def he_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Normal weights, first axis the outputs, of variance 2 / inputs (He et al. 2015)."""
    weight = rng.standard_normal(shape, dtype=np.float32)
    weight *= np.sqrt(2.0 / prod(shape[1:]))
    return weight


def channel_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each channel over batch and place: two arrays of C."""
    axes = (0, *range(2, x.ndim))
    return x.mean(axis=axes), x.std(axis=axes)


def conv_affine(rng: np.random.Generator, raw: Array) -> tuple[Array, Array]:
    """Scale and bias per channel of a batch normalisation folded into a convolution."""
    mean, std = channel_statistics(raw)
    gamma, beta = norm_affine(rng, len(mean))
    scale = (gamma / np.maximum(std, 1e-3 * std.max() + 1e-12)).astype(np.float32)
    return scale, (beta - CENTRE * mean * scale).astype(np.float32)


def norm_affine(rng: np.random.Generator, channels: int) -> tuple[Array, Array]:
    """Scale and shift of a batch normalisation: near 1 and near 0."""
    gamma = rng.uniform(0.7, 1.3, channels).astype(np.float32)
    return gamma, rng.normal(0.0, 0.2, channels).astype(np.float32)


def dense_affine(rng: np.random.Generator, raw: Array, std: float) -> tuple[Array, Array]:
    """One scale and a bias per unit that give scores of this standard deviation.

    A few samples say little about one unit: each is centred, but all are scaled alike.
    """
    mean = raw.mean(axis=0)
    scale = np.asarray(std / ((raw - mean).std() + 1e-12), np.float32)
    bias = rng.normal(0.0, 0.2 * std, len(mean)) - mean * scale
    return scale, bias.astype(np.float32)
