"""The demo's scenarios: a model, inputs, a link, and what the outputs mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offload_models import multi_stream, pretrained
from offload_models.text import alphabet, ctc_collapse, is_upside_down, render_line
from offload_models.zoo import save
from offload_runtimes.engine.values import Array

PAGE_LINES = 16
GRAIN = 4.0  # camera noise: without it, a drawing compresses better than any photograph

# Other lines of text, on which encodings are measured.
CALIBRATION_TEXTS = ("fewer bytes at the cut", "Pipeline 7 of 12")

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Scenario:
    """A model and its input on a link and a slowed device.

    Attributes:
        title: a sentence for people.
        write: writes the model to a file.
        feeds: the input.
        answer: describes the outputs in words.
        link: the link to emulate.
        slowdown: how many times slower the device is than this machine.
        float_input: the tensor that a client with fp32 input would send, if any.
        calibration: other inputs, on which encodings are measured; empty: the input itself.
    """

    title: str
    write: Callable[[Path], None]
    feeds: Mapping[str, Array]
    answer: Callable[[Outputs], str]
    link: str
    slowdown: float
    float_input: str = ""
    calibration: tuple[Mapping[str, Array], ...] = ()


def scenarios(text: str, seed: int = 0) -> tuple[Scenario, ...]:
    """Three scenarios: best on the server, best on the device, best split between both."""
    return (reading(text), turning(text), three_streams(seed))


def reading(text: str) -> Scenario:
    """PP-OCR reads a line of text from a raw camera image.

    Raises:
        InputError: the package with the weights, or Pillow, is not installed.
    """
    info = pretrained.PRETRAINED["text_recognition"]
    model = pretrained.build(info.name)
    image = render_line(text, info.width, info.height, grain=GRAIN)[None]
    letters = alphabet(model)
    return Scenario(
        f"PP-OCR (real weights) reads the rendered line {text!r}",
        lambda path: save(model, path),
        {"image": image},
        lambda outputs: f"reads {ctc_collapse(outputs['path'], letters)!r}",
        "4g",
        20.0,
        pretrained.INPUT,
        tuple(
            {"image": render_line(other, info.width, info.height, False, GRAIN, seed)[None]}
            for seed, other in enumerate(CALIBRATION_TEXTS, 1)
        ),
    )


def turning(text: str) -> Scenario:
    """PP-OCR's small classifier finds the upside-down lines of a page.

    Raises:
        InputError: the package with the weights, or Pillow, is not installed.
    """
    info = pretrained.PRETRAINED["text_orientation"]

    def upside_down_lines(outputs: Outputs) -> str:
        (scores,) = outputs.values()
        lines = [str(line) for line, score in enumerate(scores) if is_upside_down(score)]
        return f"lines {' '.join(lines)}"

    def page(shown: str) -> Array:
        return np.stack(
            [
                render_line(shown, info.width, info.height, line % 3 == 0, GRAIN, line)
                for line in range(PAGE_LINES)
            ]
        )

    return Scenario(
        f"PP-OCR's classifier (real weights) finds the upside-down ones of {PAGE_LINES} lines",
        lambda path: save(pretrained.build(info.name, batch=PAGE_LINES), path),
        {"image": page(text)},
        upside_down_lines,
        "wifi",
        10.0,
        pretrained.INPUT,
        tuple({"image": page(other)} for other in CALIBRATION_TEXTS),
    )


def three_streams(seed: int) -> Scenario:
    """Multi-Stream with small heads: one tower's output is sent while the next is computed."""
    random = np.random.default_rng(seed)
    model = multi_stream.build(seed, hidden=256)
    feeds, *others = (
        {
            value.name: random.random(
                [dim.dim_value for dim in value.type.tensor_type.shape.dim], dtype=np.float32
            )
            for value in model.graph.input
        }
        for _ in range(3)
    )
    return Scenario(
        "Multi-Stream (three towers, seeded weights) scores a human-object pair",
        lambda path: save(model, path),
        feeds,
        lambda outputs: f"best class {int(np.argmax(next(iter(outputs.values()))))}",
        "wifi",
        10.0,
        calibration=tuple(others),
    )
