"""Codecs restore every byte and refuse bytes that they did not encode."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.errors import InputError
from offload_runtimes.protocol import codecs

NAMES = st.sampled_from(["raw", "zstd", "planes"])
DTYPES = st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u2", "i1", "?", "c16"])


@given(name=NAMES, data=st.binary(max_size=5000))
def test_round_trip(name: str, data: bytes) -> None:
    codec = codecs.codec(name)
    shape = (len(data),)
    assert codec.decode(codec.encode(data, shape), len(data), shape) == data


@given(dtype=DTYPES, size=st.integers(0, 300), zeros=st.floats(0, 1), seed=st.integers(0, 99))
def test_planes_keep_every_bit(dtype: str, size: int, zeros: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    width = np.dtype(dtype).itemsize
    words = random.integers(0, 256, (size, width), np.uint8)  # NaN, infinity, denormals, all
    words[random.random(size) < zeros] = 0
    words[random.random(size) < 0.1] = [*[0] * (width - 1), 128]  # -0
    codec, shape = codecs.codec("planes"), (size, 1)
    assert codec.decode(codec.encode(words.tobytes(), shape), words.size, shape) == words.tobytes()


def test_planes_are_smaller_than_zstd_where_floats_are_dense_or_have_zeros() -> None:
    values = np.random.default_rng(0).standard_normal(1 << 14, np.float32)
    positive = np.maximum(values, 0)
    for array in (values, positive, positive.astype(np.float16)):
        sizes = {
            name: len(codecs.codec(name).encode(array.tobytes(), array.shape))
            for name in ("raw", "zstd", "planes")
        }
        assert sizes["planes"] < 0.95 * sizes["zstd"] < 0.95 * sizes["raw"]


@given(data=st.binary(max_size=100), cut=st.integers(0, 60), flag=st.binary(max_size=2))
def test_damaged_planes_are_refused(data: bytes, cut: int, flag: bytes) -> None:
    codec, shape = codecs.codec("planes"), (25,)
    good = codec.encode(np.arange(25, dtype=np.float32).tobytes(), shape)
    for wrong in (data, good[:cut], flag + good[1:], flag + codecs.codec("zstd").encode(data, ())):
        try:
            assert len(codec.decode(wrong, 100, shape)) == 100
        except ValueError as error:
            assert str(error)  # noqa: PT017  either is right, nothing else may be raised


@given(name=NAMES, data=st.binary(max_size=200), wrong=st.integers(0, 10**12))
def test_wrong_size_is_refused_before_memory_is_taken(name: str, data: bytes, wrong: int) -> None:
    codec = codecs.codec(name)
    if wrong != len(data):
        with pytest.raises(ValueError, match="bytes"):
            codec.decode(codec.encode(data, ()), wrong, ())


@given(data=st.binary(max_size=300), size=st.integers(0, 10**6))
def test_random_bytes_are_refused(data: bytes, size: int) -> None:
    try:
        assert len(codecs.codec("zstd").decode(data, size, ())) == size
    except ValueError as error:
        assert str(error)  # noqa: PT017  either is right, nothing else may be raised


def test_zstd_compresses_zeros() -> None:
    assert len(codecs.codec("zstd").encode(bytes(10**6), ())) < 10**3


def test_unknown_name() -> None:
    with pytest.raises(
        InputError, match="'gzip' is unknown: this version has raw, zstd, planes, png"
    ):
        codecs.codec("gzip")


SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.just(3))


@given(shape=SHAPES | SHAPES.map(lambda shape: shape[1:]), seed=st.integers(0, 99))
def test_png_loses_nothing_and_jpeg_little(shape: tuple[int, ...], seed: int) -> None:
    assert codecs.suits("png", "uint8", shape)
    grey = np.full(shape, 100 + seed, np.uint8)
    noise = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    png, jpeg = codecs.codec("png"), codecs.codec("jpeg")
    data = noise.tobytes()
    assert png.decode(png.encode(data, shape), len(data), shape) == data
    back = jpeg.decode(jpeg.encode(grey.tobytes(), shape), len(data), shape)
    assert np.abs(np.frombuffer(back, np.uint8).astype(int) - grey.ravel()).max() <= 2


@pytest.mark.parametrize("name", ["png", "jpeg"])
@given(data=st.binary(max_size=60), cut=st.integers(0, 400), grown=st.integers(1, 5))
def test_pictures_of_other_sizes_are_refused(name: str, data: bytes, cut: int, grown: int) -> None:
    codec, shape = codecs.codec(name), (1, 8, 8, 3)
    good = codec.encode(bytes(192), shape)
    with pytest.raises(ValueError, match=r"picture|read"):
        codec.decode(data, 192, shape)
    with pytest.raises(ValueError, match="picture"):
        codec.decode(good, 192 * grown + 3, shape)
    with pytest.raises(ValueError, match="picture"):
        codec.decode(good, 192, (1, 8 - grown, 8 + grown, 3))
    try:
        assert len(codec.decode(good[:cut], 192, shape)) == 192
    except ValueError as error:
        assert str(error)  # noqa: PT017  either is right, nothing else may be raised


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (1, 4, 4, 3)),
        ("uint8", (4, 4)),
        ("uint8", (1, 3, 4, 4)),
        ("uint8", (0, 4, 3)),
        ("uint8", (1, 1 << 17, 2, 3)),
    ],
)
def test_arrays_that_are_not_pictures(dtype: str, shape: tuple[int, ...]) -> None:
    assert not codecs.suits("png", dtype, shape)


def test_planes_do_not_suit_single_bytes() -> None:
    assert not codecs.suits("planes", "uint8", (4,))
    assert codecs.suits("planes", "float16", (4,))
    assert codecs.suits("zstd", "uint8", (4,))
