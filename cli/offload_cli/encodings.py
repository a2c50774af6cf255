"""Options that say what tensors may become on their way."""

from pathlib import Path
from typing import Annotated

import typer

EncodingOption = Annotated[
    str,
    typer.Option(
        help="What tensors may become on their way: `raw`, `lossless` (raw, zstd or planes; the"
        " default), `fp16`, `uint8`, `uint8-channel`, `uint6`, `uint4` (all also compressed), `any`"
        " of these, `png` and `jpeg` for pictures (need Pillow), or names joined by commas. What"
        " loses precision needs --tolerance or --accuracy-floor."
    ),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        help="Allow lossy encodings that change no output by more than this part of its range on"
        " any calibration input (of whole numbers: the share that changes)."
    ),
]
FloorOption = Annotated[
    float | None,
    typer.Option(
        help="Allow lossy encodings with which at least this share of the calibration's labels"
        " comes out right."
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        help="Inputs to measure sizes and effects on: an .npz file with an array for each input"
        " (and `labels`), or a folder of pictures (a sub-folder for each class)."
    ),
]
