"""Read a page: find its lines, cut them out, and read all lines in one batch.

python examples/read_page.py detect.bundle read.bundle page.png [HOST:PORT]

README.md shows how to make the bundles. Lines must be horizontal, one below the other.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from offload_models.pretrained import find
from offload_models.text import alphabet, ctc_collapse
from offload_runtimes import open_session
from PIL import Image

TEXT = 0.3  # the detector's probability above which a pixel belongs to text


def lines(page: Image.Image, is_text: Any) -> Iterator[Image.Image]:
    """Cut the lines out of a page, given the pixels of a smaller copy that are text."""
    scale = np.array([page.width / is_text.shape[1], page.height / is_text.shape[0]] * 2)
    rows = np.concatenate(([0], is_text.any(axis=1), [0])).astype(np.int8)
    edges = np.flatnonzero(np.diff(rows))
    for top, bottom in zip(edges[::2], edges[1::2], strict=True):
        columns = np.flatnonzero(is_text[top:bottom].any(axis=0))
        # The detector marks the middle of a line: add a third of its height on each side.
        more = (bottom - top) / 3 + 2
        box = columns[0] - more, top - more, columns[-1] + more, bottom + more
        yield page.crop(tuple((box * scale).round().astype(int).tolist()))


def padded(line: Image.Image, height: int, width: int) -> Any:
    """A line at the reader's height, white on its right."""
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(line.resize((min(round(line.width * height / line.height), width), height)))
    return np.asarray(canvas)


def main(detect: str, read: str, picture: str, server: str | None = None) -> None:
    """Print the lines of a page."""
    page = Image.open(picture).convert("RGB")
    with open_session(detect, server) as detector, open_session(read, server) as reader:
        _, height, width, _ = detector.get_inputs()[0].shape
        pixels = np.asarray(page.resize((width, height)))[None]
        (scores,) = detector.run(None, {"image": pixels})
        _, height, width, _ = reader.get_inputs()[0].shape
        crops = [padded(line, height, width) for line in lines(page, scores[0, 0] > TEXT)]
        (paths,) = reader.run(None, {"image": np.stack(crops)}) if crops else ([],)
    letters = alphabet(onnx.load(find("text_recognition")))
    for path in paths:
        print(ctc_collapse(path, letters))


if __name__ == "__main__":
    main(*sys.argv[1:])
