"""Rows of several sessions through one segment at once: whether, how many, and how they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from offload.bundle.bundle import Value
from offload.bundle.compare import difference
from offload.errors import DeadlineError, InputError

from offload_runtimes.engine import Array, Engine, dtype_of

Feeds = Mapping[str, Array]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

TOLERANCE = 1e-3  # of the largest value
HALF_TOLERANCE = 2e-2
_TRIAL_ROWS = (1, 2, 1)
_OPEN_SIZES = (16, 64, 224, 8, 3, 1)
_SEED = 5


@dataclass(frozen=True, slots=True)
class Batching:
    """How many rows run at once.

    Attributes:
        rows: at most so many; 1: every frame runs alone.
        wait_s: how long a worker waits for rows of other sessions; 0: it takes what waits already.
    """

    rows: int = 1
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"a batch must have room for 1 row at least, not {self.rows}")
        if not 0 <= self.wait_s <= 60:
            raise InputError(f"a worker may wait 0 to 60 s for a batch, not {self.wait_s:g}")


def rows_of(feeds: Feeds) -> int | None:
    """The size of axis 0 that all inputs share; None where they do not, it is 0, or one has none.

    Sequences and maps have none.
    """
    sizes = {
        value.shape[0] if isinstance(value, np.ndarray) and value.ndim else 0
        for value in feeds.values()
    }
    return sizes.pop() or None if len(sizes) == 1 else None


def shapes_of(feeds: Feeds) -> Shapes:
    """All sizes but those of axis 0: what inputs that run together must share."""
    return tuple(sorted((name, array.shape[1:]) for name, array in feeds.items()))


def joined(several: Sequence[Feeds]) -> dict[str, Array]:
    """Inputs one after the other along axis 0."""
    return {name: np.concatenate([feeds[name] for feeds in several]) for name in several[0]}


def parted(outputs: Sequence[Array], rows: Sequence[int]) -> list[list[Array]]:
    """Each one's own rows of all outputs, as views.

    Raises:
        InputError: an output has not as many rows as went in.
    """
    ends = np.cumsum(rows).tolist()
    for value in outputs:
        if not isinstance(value, np.ndarray) or not value.ndim or value.shape[0] != ends[-1]:
            came = value.shape if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise InputError(f"{ends[-1]} rows went in, but an output of {came} came out")
    starts = [0, *ends[:-1]]
    return [
        [array[start:end] for array in outputs] for start, end in zip(starts, ends, strict=True)
    ]


def disagreement(engine: Engine, limit_s: float) -> str:
    """Why rows do not run together as they do alone, tried on random ones; empty: they do.

    Each run may take so many seconds. Open sizes of other axes get the first of a few values
    that the engine takes.
    """
    for size in _OPEN_SIZES:
        try:
            drawn = np.random.default_rng(_SEED)
            several = [_draw(engine.inputs, rows, size, drawn) for rows in _TRIAL_ROWS]
            alone = [engine.run(None, feeds, limit_s) for feeds in several]
        except DeadlineError:
            return f"a trial took more than {limit_s:g} s"
        except InputError:
            continue
        return _compared(engine, several, alone, limit_s)
    return "it takes no random input to try it with"


def _compared(
    engine: Engine, several: Sequence[Feeds], alone: Sequence[Sequence[Array]], limit_s: float
) -> str:
    try:
        together = parted(engine.run(None, joined(several), limit_s), _TRIAL_ROWS)
    except (InputError, DeadlineError) as error:
        return f"rows cannot run together ({error})"
    pairs = zip(zip(*alone, strict=True), zip(*together, strict=True), strict=True)
    for value, (wanted, got) in zip(engine.outputs, pairs, strict=True):
        allowed = HALF_TOLERANCE if wanted[0].dtype.itemsize < 4 else TOLERANCE
        apart = max(map(difference, wanted, got))
        if apart > allowed:
            return f"{value.name!r} of rows together is off by {apart:.1e} of its largest value"
    return ""


def _draw(
    inputs: Sequence[Value], rows: int, size: int, drawn: np.random.Generator
) -> dict[str, Array]:
    """So many random rows; InputError for a type that is not drawn."""
    return {value.name: _array(value, _sizes(value, rows, size), drawn) for value in inputs}


def _sizes(value: Value, rows: int, size: int) -> tuple[int, ...]:
    inner = (value.shape or ())[1:]
    return (rows, *(each if isinstance(each, int) else size for each in inner))


def _array(value: Value, shape: tuple[int, ...], drawn: np.random.Generator) -> Array:
    dtype: np.dtype[Any] = dtype_of(value.type)
    if dtype.kind == "f":
        return drawn.standard_normal(shape).astype(dtype)
    highest = 255 if value.type == "tensor(uint8)" else 1
    return drawn.integers(0, highest + 1, shape).astype(dtype)
