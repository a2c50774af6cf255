"""The real weights read real text; nothing here runs the package they come in."""

import importlib.util
import subprocess
import sys
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from offload.errors import InputError
from offload_models import pretrained, text

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None,
    reason="the weights are in the package rapidocr: pip install --no-deps 'rapidocr>=3.10,<4'",
)


@cache
def session(name: str, width: int | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    model = pretrained.build(name, width).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answer(name: str, picture: NDArray[np.uint8], width: int | None = None) -> NDArray[np.int64]:
    found: NDArray[np.int64] = session(name, width).run(None, {"image": picture[None]})[0]
    return found


@needs_weights
@pytest.mark.parametrize(
    "line", ["Split inference 42", "Meet me at the old bridge, 7 pm", "Room B-17: 3.14159 EUR"]
)
@pytest.mark.parametrize(("width", "grain"), [(320, 0.0), (480, 0.0), (320, 6.0)])
def test_a_drawn_line_is_read_right(line: str, width: int, grain: float) -> None:
    letters = text.alphabet(onnx.load(pretrained.find("text_recognition")))
    assert len(letters) == 18_710
    path = answer("text_recognition", text.render_line(line, width, 48, grain=grain), width)
    assert text.ctc_collapse(path, letters) == line


@needs_weights
@pytest.mark.parametrize("line", ["Split inference 42", "Hello", "it was the best"])
@pytest.mark.parametrize("upside_down", [False, True])
def test_the_orientation_is_seen(line: str, upside_down: bool) -> None:
    scores = answer("text_orientation", text.render_line(line, 192, 48, upside_down))
    assert text.is_upside_down(scores.astype(np.float32)) == upside_down


@needs_weights
def test_many_lines_are_judged_at_once() -> None:
    turned = [False, True, True, False]
    lines = [
        text.render_line(f"Split inference {i}", 192, 48, flag) for i, flag in enumerate(turned)
    ]
    model = pretrained.build("text_orientation", batch=4).SerializeToString()
    runs = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores = runs.run(None, {"image": np.stack(lines)})[0]
    assert [text.is_upside_down(one) for one in scores] == turned


@needs_weights
def test_text_is_found_where_it_is() -> None:
    page = np.full((320, 320, 3), 245, np.uint8)
    page[200:248] = text.render_line("Split inference", 320, 48)
    marked = answer("text_detection", page)[0, 0] > 0.5
    rows = np.flatnonzero(marked.any(axis=1))
    assert 195 <= rows.min() <= rows.max() <= 253


@needs_weights
def test_the_decision_in_the_graph_is_the_one_outside() -> None:
    model = onnx.load(pretrained.find("text_recognition"))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    runs = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    line = text.render_line("Split inference 42", 320, 48)
    normal = (line / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    scores = runs.run(None, {"x": normal.transpose(2, 0, 1)[None].astype(np.float32)})[0]
    assert text.ctc_collapse(scores.argmax(axis=-1), text.alphabet(model)) == "Split inference 42"


@needs_weights
def test_the_package_itself_is_not_imported() -> None:
    code = (
        "import sys; from offload_models import pretrained; pretrained.find('text_detection');"
        "print('rapidocr' in sys.modules, 'cv2' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


def test_a_missing_package_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install --no-deps"):
        pretrained.find("text_orientation")
    with pytest.raises(InputError, match="text_detection"):
        pretrained.find("text_translation")
