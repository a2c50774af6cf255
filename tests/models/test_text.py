"""Drawing a line, and reading a path of classes."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.errors import InputError
from offload_models.text import alphabet, ctc_collapse, is_upside_down, render_line

LETTERS = ("", "a", "b", "c", " ")


@given(st.text(alphabet="abc ", max_size=12), st.integers(1, 3), st.integers(1, 2))
def test_a_path_made_by_the_rules_of_ctc_is_read_back(text: str, repeat: int, blank: int) -> None:
    path = [0] * blank
    for letter in text:
        path += [LETTERS.index(letter)] * repeat + [0] * blank
    classes = np.array(path, np.int64)
    assert ctc_collapse(classes, LETTERS) == text


def test_equal_neighbours_without_a_blank_are_one_letter() -> None:
    assert ctc_collapse(np.array([[1, 1, 2, 0, 2]]), LETTERS) == "abb"


def test_the_alphabet_begins_with_the_blank_and_ends_with_the_space() -> None:
    model = onnx.ModelProto()
    with pytest.raises(InputError, match="character"):
        alphabet(model)
    onnx.helper.set_model_props(model, {"character": "!\n\u3000\n\u2028"})
    assert alphabet(model) == ("", "!", "\u3000", "\u2028", " ")


def test_orientation_is_the_larger_score() -> None:
    assert is_upside_down(np.array([[0.2, 0.8]], np.float32))
    assert not is_upside_down(np.array([[0.8, 0.2]], np.float32))


def test_a_line_is_drawn_within_its_picture() -> None:
    line = render_line("Split inference 42", 320, 48)
    assert line.shape == (48, 320, 3)
    assert line.dtype == np.uint8
    dark = line.mean(axis=2) < 128
    assert 0.02 < dark.mean() < 0.5
    for edge in (dark[0], dark[-1], dark[:, 0], dark[:, -1]):
        assert not edge.any()


def test_upside_down_is_a_half_turn() -> None:
    upright, turned = (render_line("abc", 200, 40, flag) for flag in (False, True))
    assert (np.rot90(upright, 2) == turned).all()


def test_grain_is_repeatable_noise_of_the_size_asked_for() -> None:
    flat, one, again = (render_line("abc", 200, 40, grain=g).astype(float) for g in (0, 5, 5))
    assert (one == again).all()
    ink = flat < 128
    assert 4 < (one - flat)[ink].std() < 6


def test_a_line_too_long_to_read_is_refused() -> None:
    with pytest.raises(InputError, match="shorten"):
        render_line("word " * 40, 200, 40)
