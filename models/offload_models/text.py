"""Lines of text: drawing them for a model to read, and reading what it answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from offload.errors import InputError
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from PIL import ImageFont

INK, PAPER = (24, 26, 32), (248, 247, 242)


def render_line(
    text: str,
    width: int,
    height: int,
    upside_down: bool = False,
    grain: float = 0.0,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Draw one line of text, as large as fits, at the left: uint8 height x width x 3.

    `grain` is the standard deviation, in steps of 255, of noise as of a camera's sensor; a flat
    drawing compresses far better than any photograph, so bytes measured on it flatter. So do
    several lines with the same noise: give each a `seed` of its own.

    Raises:
        InputError: Pillow isn't installed, or the line is too long to be drawn legibly.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise InputError(
            "drawing text needs Pillow: install it with `pip install 'pillow>=10.1'`"
        ) from None
    picture = Image.new("RGB", (width, height), PAPER)
    font = fitting_font(text, width - height // 3, round(height * 0.7))
    draw = ImageDraw.Draw(picture)
    draw.text((height // 6, height / 2), text, fill=INK, font=font, anchor="lm")
    noise = np.random.default_rng(seed).normal(0.0, grain, (height, width, 3))
    drawn = (np.asarray(picture) + noise).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(drawn[::-1, ::-1] if upside_down else drawn)


def fitting_font(text: str, width: int, size: int) -> "ImageFont.FreeTypeFont":
    """Pillow's own font, at the given size in pixels or less, so that the text fits the width."""
    from PIL import ImageFont

    for pixels in range(size, 9, -1):
        font = ImageFont.load_default(pixels)
        if isinstance(font, ImageFont.FreeTypeFont) and font.getlength(text) <= width:
            return font
    raise InputError(f"a line of {len(text)} characters doesn't fit {width} pixels: shorten it")


def alphabet(model: onnx.ModelProto) -> tuple[str, ...]:
    """What each class of a PP-OCR recognition model stands for; class 0 is CTC's blank.

    Raises:
        InputError: the model's metadata holds no `character` entry.
    """
    held = [entry.value for entry in model.metadata_props if entry.key == "character"]
    if not held:
        raise InputError("the model holds no alphabet: its metadata has no entry 'character'")
    return ("", *held[0].split("\n"), " ")


def ctc_decode(logits: NDArray[np.float32], alphabet: Sequence[str]) -> str:
    """The best path of scores (..., time, class) as text (Graves et al. 2006, section 3.2)."""
    return ctc_collapse(logits.reshape(-1, logits.shape[-1]).argmax(axis=-1), alphabet)


def ctc_collapse(path: NDArray[np.int64], alphabet: Sequence[str]) -> str:
    """Text of a path of classes: repeats become one, then blanks (class 0) go."""
    classes = path.reshape(-1)
    new = np.diff(classes, prepend=-1) != 0
    return "".join(alphabet[int(c)] for c in classes[new])


def is_upside_down(scores: NDArray[np.float32]) -> bool:
    """Answer of the orientation classifier, whose two classes are 0 and 180 degrees."""
    return bool(scores.reshape(-1).argmax() == 1)


def with_best_path(model: onnx.ModelProto) -> onnx.ModelProto:
    """The recognition model with its decision inside: output `path`, int64 batch x time.

    The raw scores are 18,710 numbers for each place, megabytes for a line: no answer to send.

    Raises:
        InputError: the model has more than one output.
    """
    if len(model.graph.output) != 1:
        raise InputError(f"the model has {len(model.graph.output)} outputs, not the scores alone")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    scores = made.graph.output[0]
    best = helper.make_node("ArgMax", [scores.name], ["path"], "path/argmax", axis=2, keepdims=0)
    made.graph.node.append(best)
    dims = [d.dim_value or d.dim_param for d in scores.type.tensor_type.shape.dim][:2]
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("path", TensorProto.INT64, dims))
    return made
