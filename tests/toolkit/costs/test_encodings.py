"""The registry's words, and what a user may ask for."""

from pathlib import Path

import pytest
from offload.costs.encodings import ENCODINGS, EncodingPolicy, TensorFormat, encoding, parse_allowed
from offload.errors import InputError


def test_names_follow_form_and_codec() -> None:
    for name, found in ENCODINGS.items():
        assert encoding(name) is found
        assert found.is_lossless == (
            found.form is TensorFormat.PLAIN and not name.startswith("jpeg")
        )
        assert (found.form is TensorFormat.PLAIN) == (found.wire_name("t") == "t")
        assert (found.guard_name("t") is not None) == found.form.quantises


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lossless", {"raw", "zstd", "planes"}),
        ("raw", {"raw"}),
        ("fp16", {"raw", "zstd", "planes", "fp16", "fp16+zstd", "fp16+planes"}),
        ("uint6", {"raw", "zstd", "planes", "uint6+zstd"}),
        ("fp16+zstd", {"raw", "fp16+zstd"}),
        ("zstd, uint8+zstd", {"raw", "zstd", "uint8+zstd"}),
        ("any", set(ENCODINGS) - {"png", "jpeg", "jpeg95"}),
        ("zstd,picture", {"raw", "zstd", "png", "jpeg", "jpeg95"}),
    ],
)
def test_words_that_stand_for_several(text: str, names: set[str]) -> None:
    assert {found.name for found in parse_allowed(text)} == names


@pytest.mark.parametrize("text", ["gzip", "", "fp16;zstd"])
def test_unknown_words_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="unknown"):
        parse_allowed(text)


def test_nothing_is_lost_unless_it_is_said_how_much() -> None:
    assert EncodingPolicy.parse().is_lossless
    some = Path("some.npz")
    assert not EncodingPolicy.parse(tolerance=0.1, calibration=some).is_lossless
    with pytest.raises(InputError, match="--tolerance or --accuracy-floor"):
        EncodingPolicy.parse("fp16", calibration=some)
    with pytest.raises(InputError, match="--calibration"):
        EncodingPolicy.parse(tolerance=0.1)


@pytest.mark.parametrize(
    ("tolerance", "floor"), [(-1.0, None), (float("nan"), None), (None, 1.5), (None, -0.1)]
)
def test_limits_out_of_range_are_refused(tolerance: float | None, floor: float | None) -> None:
    with pytest.raises(InputError, match="not"):
        EncodingPolicy.parse("any", tolerance, floor, Path("some.npz"))


def test_encodings_of_other_servers_are_nodes_of_the_graph() -> None:
    def names(text: str) -> list[str]:
        policy = EncodingPolicy.parse(text, 0.1, calibration=Path("some.npz"))
        return [encoding.name for encoding in policy.without_codecs().encodings]

    assert names("lossless") == names("raw") == ["raw"]
    assert names("any") == ["raw", "fp16", "uint8", "uint8-channel"]
    assert names("fp16") == ["raw", "fp16"]
    for text in ("zstd", "jpeg", "uint4"):
        with pytest.raises(InputError, match="only our own server decodes"):
            names(text)
