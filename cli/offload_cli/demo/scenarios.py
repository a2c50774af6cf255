"""What the demo runs: a model, an input, a situation, and what the answer means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offload_models import multi_stream, pretrained
from offload_models.text import alphabet, ctc_collapse, is_upside_down, render_line
from offload_models.zoo import save
from offload_runtimes.engine.values import Array

PAGE_LINES = 16
GRAIN = 4.0  # a camera's noise: a flat drawing would be easier to send than any photograph

OTHERS = ("fewer bytes at the cut", "Pipeline 7 of 12")

Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Scenario:
    """One scene of the demo.

    Attributes:
        title: what happens, for people.
        write: writes the model to a file.
        feeds: its input.
        answer: what its outputs mean, in words.
        link: the link the act is set on.
        slowdown: how many times slower the device is than this machine.
        float_input: the tensor an fp32 client would send instead of the raw input, if any.
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
    """The demo's scenes: one for the server, one for the device, one for both together."""
    return (reading(text), turning(text), three_streams(seed))


def reading(text: str) -> Scenario:
    """PP-OCR reads a line of text from a raw camera image.

    Raises:
        InputError: the package with the weights, or Pillow, is not installed.
    """
    wants = pretrained.PRETRAINED["text_recognition"]
    model = pretrained.build(wants.name)
    image = render_line(text, wants.width, wants.height, grain=GRAIN)[None]
    letters = alphabet(model)
    return Scenario(
        f"PP-OCR (real weights) reads the rendered line {text!r}",
        lambda path: save(model, path),
        {"image": image},
        lambda outputs: f"reads {ctc_collapse(outputs['path'], letters)!r}",
        "4g",
        20.0,
        wants.input_name,
        tuple(
            {"image": render_line(other, wants.width, wants.height, False, GRAIN, seed)[None]}
            for seed, other in enumerate(OTHERS, 1)
        ),
    )


def turning(text: str) -> Scenario:
    """PP-OCR's small classifier tells which lines of a page stand on their heads.

    Raises:
        InputError: the package with the weights, or Pillow, is not installed.
    """
    wants = pretrained.PRETRAINED["text_orientation"]

    def page(shown: str) -> Array:
        return np.stack(
            [
                render_line(shown, wants.width, wants.height, line % 3 == 0, GRAIN, line)
                for line in range(PAGE_LINES)
            ]
        )

    return Scenario(
        f"PP-OCR's classifier (real weights) finds the upside-down ones of {PAGE_LINES} lines",
        lambda path: save(pretrained.build(wants.name, batch=PAGE_LINES), path),
        {"image": page(text)},
        lambda outputs: "lines " + " ".join(map(str, _turned(_first(outputs)))),
        "wifi",
        10.0,
        wants.input_name,
        tuple({"image": page(other)} for other in OTHERS),
    )


def _turned(scores: Array) -> list[int]:
    return [line for line, score in enumerate(scores) if is_upside_down(score)]


def _first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def three_streams(seed: int) -> Scenario:
    """Multi-Stream with light heads: three towers, so that one uploads while the next computes."""
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
        lambda outputs: f"best class {int(np.argmax(_first(outputs)))}",
        "wifi",
        10.0,
        calibration=tuple(others),
    )
