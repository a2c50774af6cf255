"""Calibration inputs: every form that fits is taken, all else is one sentence."""

from pathlib import Path

import numpy as np
import pytest
from offload.bundle.bundle import ModelValue
from offload.bundle.sample_inputs import ModelInputs
from offload.errors import InputError
from offload_runtimes.measure.calibration import random_calibration, read_calibration
from PIL import Image

FLOAT = ModelValue("x", "tensor(float)", (1, 3, 4, 5))
BYTES = ModelValue("image", "tensor(uint8)", (1, 4, 5, 3))


@pytest.mark.parametrize(
    ("shape", "count"), [((1, 3, 4, 5), 1), ((6, 3, 4, 5), 6), ((6, 1, 3, 4, 5), 6)]
)
def test_samples_alone_joined_and_stacked(
    tmp_path: Path, shape: tuple[int, ...], count: int
) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.savez(tmp_path / "in.npz", x=array, labels=np.arange(count))
    found = read_calibration(tmp_path / "in.npz", [FLOAT])
    assert [feeds["x"].shape for feeds in found.feeds] == [(1, 3, 4, 5)] * count
    assert np.array_equal(np.concatenate([f["x"] for f in found.feeds]).ravel(), array.ravel())
    assert found.labels == tuple(range(count))
    assert not found.is_random


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((1, 3, 4, 6), np.float32)}, "is .1x3x4x5., the calibration array"),
        ({"x": np.zeros((3, 4, 5), np.float32)}, "calibration array"),
        ({"x": np.zeros((1, 3, 4, 5))}, "must be float32"),
        ({"y": np.zeros((1, 3, 4, 5), np.float32)}, "'y', which is not an input"),
        ({"labels": np.zeros(1, int)}, "lacks input 'x'"),
        ({"x": np.zeros((0, 3, 4, 5), np.float32)}, "no sample"),
        ({"x": np.zeros((1, 3, 4, 5), np.float32), "labels": np.zeros(1)}, "whole numbers"),
    ],
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=sentence):
        read_calibration(tmp_path / "in.npz", [FLOAT])


def test_what_is_no_file_of_arrays_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_calibration(tmp_path / "text.npz", [FLOAT])
    with pytest.raises(InputError, match="does not exist"):
        read_calibration(tmp_path / "none.npz", [FLOAT])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        read_calibration(tmp_path / "empty", [BYTES])


@pytest.mark.parametrize("value", [FLOAT, BYTES])
def test_pictures_are_scaled_and_labelled_by_folder(tmp_path: Path, value: ModelValue) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(2):
            picture = np.full((9, 11, 3), 100 * label + number, np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    found = read_calibration(tmp_path, [value])
    assert found.labels == (0, 0, 1, 1)
    last = found.feeds[3][value.name]
    assert last.shape == value.shape
    assert last.flat[0] == pytest.approx(101 if value is BYTES else 101 / 255)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"bad\.png is not a picture"):
        read_calibration(tmp_path, [BYTES])


def test_random_pictures_are_noise_that_nothing_compresses() -> None:
    found = random_calibration(ModelInputs((ModelValue("image", "tensor(uint8)", (1, 64, 64, 3)),)))
    assert found.is_random
    assert len(np.unique(found.feeds[0]["image"])) > 200
    with pytest.raises(InputError, match=r"dynamic axis 0 \(n\): give sizes, like --shape x=1x3"):
        random_calibration(ModelInputs((ModelValue("x", "tensor(float)", ("n", 3)),)))
