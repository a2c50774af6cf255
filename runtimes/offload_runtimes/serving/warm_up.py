"""Warm up a server's engines: which shapes to run, and within what time.

What onnxruntime's CUDA provider does, by its source and issues; nothing here was measured:

- Each run takes a CUDA stream from its session (since 1.14, `AcquireDeviceStreamCollection` in
  `core/framework/session_state.cc`), so that workers run one session at the same time without
  `user_compute_stream`.
- Newer versions keep the stream, with its cuBLAS and cuDNN handles and the arena's memory, for
  each thread that ran the session (issue 29351: memory grows with each new thread). So only the
  workers run frames on a GPU, and each of them warms the engines up.
- A convolution is planned for one shape, and only the last plan is kept (since 1.20 with cuDNN 9,
  `Conv::UpdateState` in `core/providers/cuda/nn/conv.cc`; issue 23006: 15 times slower when
  shapes change with each run). Warm-up helps only if the shape stays the same afterwards: so
  batches get one number of rows and an engine of their own.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TypeAlias

from offload.bundle.bundle import DTYPES, Bundle, ModelValue
from offload.costs.encodings import RAW, TensorFormat, encoding
from offload.errors import DeadlineError, InputError
from offload.planning.plan import Send

from offload_runtimes.engine import Engine, InputShapes

WarmRun: TypeAlias = tuple[Engine, InputShapes]

WARM_RUN_S = 5.0
WARM_UP_S = 30.0
_TRIALS = 3
_COSTLY = 2.0  # a run after another shape, over a run after the same shape


def planned_shapes(bundle: Bundle, part: str, inputs: Sequence[ModelValue]) -> list[InputShapes]:
    """The shapes of a part's inputs in the plans that run it, each once.

    A size that the model leaves open follows from the planned bytes of the tensor, if it is the
    only one. Plans for which a shape cannot be known are left out.
    """
    found: list[InputShapes] = []
    for plan in bundle.plans:
        if all(segment.part != part for segment in plan.segments):
            continue
        sends = {send.wire: send for send in plan.uploads}
        shapes = {value.name: _shape(value, sends.get(value.name)) for value in inputs}
        known = {name: shape for name, shape in shapes.items() if shape is not None}
        if len(known) == len(inputs) and known not in found:
            found.append(known)
    return found


def _shape(value: ModelValue, send: Send | None) -> tuple[int, ...] | None:
    """An input's shape, with the size that is open in the model; None: it is not known."""
    if value.shape is None or value.type not in DTYPES:
        return None
    sizes = [size for size in value.shape if isinstance(size, int)]
    missing = len(value.shape) - len(sizes)
    if missing == 0:
        return tuple(sizes)
    size_bytes = _planned_bytes(send)
    row_bytes = DTYPES[value.type].itemsize
    for size in sizes:
        row_bytes *= size
    if missing > 1 or size_bytes is None or not row_bytes or size_bytes % row_bytes:
        return None
    return tuple(size if isinstance(size, int) else size_bytes // row_bytes for size in value.shape)


def _planned_bytes(send: Send | None) -> int | None:
    """Bytes of the tensor that an engine gets for an upload; None: the plan does not tell."""
    if send is None:
        return None
    used = encoding(send.encoding)
    if used.codec == RAW.codec:
        return send.size_bytes
    return send.tensor_bytes if used.form is TensorFormat.PLAIN else None


def with_rows(shapes: InputShapes, rows: int) -> InputShapes:
    """The shapes with another size of axis 0."""
    return {name: (rows, *shape[1:]) for name, shape in shapes.items()}


def warm_up(runs: Iterable[WarmRun], run_limit_s: float, total_s: float = WARM_UP_S) -> int:
    """Run engines on zeros, so that the first frame finds memory and kernels ready.

    Returns the number of runs; none begins after `total_s`, and each is stopped after
    `run_limit_s`.
    """
    until_s = time.monotonic() + total_s
    done = 0
    for engine, shapes in runs:
        left_s = until_s - time.monotonic()
        if left_s > 0:
            engine.warm(min(run_limit_s, left_s), shapes)
            done += 1
    return done


def is_slowed_by_changes(
    engine: Engine, shapes: InputShapes, rows: int, run_limit_s: float
) -> bool:
    """Whether a run takes more than twice as long after a run with another number of rows."""
    one, many = (engine.zeros(with_rows(shapes, count)) for count in (1, rows))
    if one is None or many is None:
        return False
    same_s = changed_s = float("inf")
    with suppress(InputError, DeadlineError):
        for _ in range(_TRIALS):
            engine.run(None, one, run_limit_s)
            start_s = time.monotonic()
            engine.run(None, many, run_limit_s)
            middle_s = time.monotonic()
            engine.run(None, many, run_limit_s)
            changed_s = min(changed_s, middle_s - start_s)
            same_s = min(same_s, time.monotonic() - middle_s)
        return changed_s > _COSTLY * same_s
    return False
