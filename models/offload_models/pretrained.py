"""Models with real weights for the demo: PP-OCR, from the files of the package rapidocr.

The package is not imported, only its files are read (Apache-2.0; the weights are PaddleOCR's).
Neither its code nor OpenCV is needed; `pip install --no-deps rapidocr` is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import onnx
from offload.errors import InputError

from offload_models.image import with_image_input
from offload_models.text import with_best_path


@dataclass(frozen=True, slots=True)
class PretrainedModel:
    """A model file of the package and the picture that it expects.

    Attributes:
        name: its name in this module.
        file: the file name in the package.
        summary: one line for a table.
        height: rows of the picture.
        width: usual columns of the picture; the model accepts others too.
    """

    name: str
    file: str
    summary: str
    height: int
    width: int


# The input of every model: float32 1 x 3 x height x width, pixels normalised by mean and deviation.
INPUT, MEAN, STD = "x", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
MODELS = (
    PretrainedModel("text_recognition", "PP-OCRv6_rec_small.onnx", "reads a line of text", 48, 320),
    PretrainedModel(
        "text_orientation",
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "detects whether a line of text is upside down",
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
    """Find the file of a model.

    Raises:
        InputError: the model is unknown, or the package is not installed or has no such file.
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


def build(name: str, width: int | None = None, batch: int | str = 1) -> onnx.ModelProto:
    """Build the model for use on a device: bytes of a picture in, a small output.

    Input `image`, uint8 batch x height x width x 3. The output of `text_recognition` is `path`,
    int64 batch x time, for `offload_models.text.ctc_collapse`.

    Args:
        name: one of `PRETRAINED`.
        width: columns of a picture; by default the model's usual width.
        batch: number of pictures, or a name to keep it open.

    Raises:
        InputError: as `find`.
    """
    source, spec = onnx.load(find(name)), PRETRAINED[name]
    columns = spec.width if width is None else width
    model = with_image_input(source, INPUT, spec.height, columns, MEAN, STD, batch)
    return with_best_path(model) if name == "text_recognition" else model
