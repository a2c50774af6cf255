"""Text recognition: render lines of text as model inputs, and decode the model's outputs."""

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
    """Draw one line of text, as large as fits, left-aligned: uint8 height x width x 3.

    `grain` is the standard deviation of sensor noise, in steps of 255. Without noise a drawing
    compresses far better than a photograph, and so do several lines with the same noise: use
    another `seed` for each.

    Raises:
        InputError: Pillow is not installed, or the line is too long to be legible.
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
    """Pillow's default font at the largest size, up to `size` pixels, that fits the width."""
    from PIL import ImageFont

    for pixels in range(size, 9, -1):
        font = ImageFont.load_default(pixels)
        if isinstance(font, ImageFont.FreeTypeFont) and font.getlength(text) <= width:
            return font
    raise InputError(f"a line of {len(text)} characters doesn't fit {width} pixels: shorten it")


def alphabet(model: onnx.ModelProto) -> tuple[str, ...]:
    """The characters of a PP-OCR recognition model by class; class 0 is the CTC blank.

    Raises:
        InputError: the model's metadata has no `character` entry.
    """
    entries = [entry.value for entry in model.metadata_props if entry.key == "character"]
    if not entries:
        raise InputError("the model has no alphabet: its metadata has no entry 'character'")
    return ("", *entries[0].split("\n"), " ")


def ctc_collapse(path: NDArray[np.int64], alphabet: Sequence[str]) -> str:
    """Text of a CTC path (Graves et al. 2006, section 3.2): merge repeats, then drop blanks (0)."""
    classes = path.reshape(-1)
    new = np.diff(classes, prepend=-1) != 0
    return "".join(alphabet[int(c)] for c in classes[new])


def is_upside_down(scores: NDArray[np.float32]) -> bool:
    """Result of the orientation classifier, whose two classes are 0 and 180 degrees."""
    return bool(scores.reshape(-1).argmax() == 1)


def with_best_path(model: onnx.ModelProto) -> onnx.ModelProto:
    """Append an ArgMax to the recognition model: output `path`, int64 batch x time.

    The raw scores are 18,710 numbers for each time step, megabytes for a line: too large to send.

    Raises:
        InputError: the model has more than one output.
    """
    if len(model.graph.output) != 1:
        raise InputError(
            f"the model has {len(model.graph.output)} outputs: expected only the scores"
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    scores = result.graph.output[0]
    best = helper.make_node("ArgMax", [scores.name], ["path"], "path/argmax", axis=2, keepdims=0)
    result.graph.node.append(best)
    dims = [d.dim_value or d.dim_param for d in scores.type.tensor_type.shape.dim][:2]
    del result.graph.output[:]
    result.graph.output.append(helper.make_tensor_value_info("path", TensorProto.INT64, dims))
    return result
