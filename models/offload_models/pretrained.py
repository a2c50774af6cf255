"""Models with real weights for the demo: PP-OCR, from the files of the package rapidocr.

The package isn't imported, only its files are read (Apache-2.0; the weights are PaddleOCR's):
so neither its code nor OpenCV is needed, and `pip install --no-deps rapidocr` is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import onnx
from offload.errors import InputError

from offload_models.image import Rgb, with_image_input
from offload_models.text import with_best_path


@dataclass(frozen=True, slots=True)
class PretrainedModel:
    """A file of the package and what its model wants to see.

    Attributes:
        name: what it is called here.
        file: its name in the package.
        summary: one line for a table.
        input_name: the model's input, float32 1 x 3 x height x width.
        height: rows of the picture.
        width: usual columns of the picture; the model takes others too.
        mean: of each channel, for pixels from 0 to 1.
        std: of each channel, for pixels from 0 to 1.
    """

    name: str
    file: str
    summary: str
    height: int
    width: int
    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (0.5, 0.5, 0.5)
    input_name: str = "x"


MODELS = (
    PretrainedModel("text_recognition", "PP-OCRv6_rec_small.onnx", "reads a line of text", 48, 320),
    PretrainedModel(
        "text_orientation",
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "tells whether a line of text stands on its head",
        48,
        192,
    ),
    PretrainedModel(
        "text_detection",
        "PP-OCRv6_det_small.onnx",
        "marks where text is in a picture",
        320,
        320,
    ),
)
PRETRAINED: Mapping[str, PretrainedModel] = MappingProxyType({m.name: m for m in MODELS})


def find(name: str) -> Path:
    """Where the model's file is.

    Raises:
        InputError: there's no such model, or the package isn't installed or doesn't hold it.
    """
    if name not in PRETRAINED:
        known = ", ".join(PRETRAINED)
        raise InputError(f"there is no pretrained model {name!r}: choose one of {known}")
    spec = find_spec("rapidocr")
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder) / "models" / PRETRAINED[name].file for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    raise InputError(
        f"{name} comes with the package rapidocr 3.10, which isn't installed: "
        "run `pip install --no-deps 'rapidocr>=3.10,<4'`"
    )


def build(name: str, width: int | None = None, batch: int = 1) -> onnx.ModelProto:
    """The model as a device would use it: bytes of a picture in, a small answer out.

    Input `image`, uint8 batch x height x width x 3. The answer of `text_recognition` is `path`,
    int64 batch x time, for `offload_models.text.ctc_collapse`.

    Args:
        name: one of `PRETRAINED`.
        width: columns of a picture, the model's usual ones by default.
        batch: pictures at a time.

    Raises:
        InputError: as `find`.
    """
    model, wants = onnx.load(find(name)), PRETRAINED[name]
    columns = wants.width if width is None else width
    made = with_image_input(
        model, wants.input_name, wants.height, columns, wants.mean, wants.std, batch
    )
    return with_best_path(made) if name == "text_recognition" else made
