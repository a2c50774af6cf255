"""The only package that imports onnxruntime: load a model, run it, profile it."""

from offload.bundle.bundle import DTYPES
from onnxruntime import __version__ as ORT_VERSION  # noqa: N812  (a constant of the library)

from offload_runtimes.engine.arena import Arena, arena_of, shared_arena
from offload_runtimes.engine.engine import Call, Engine, InputShapes, load, load_once
from offload_runtimes.engine.options import (
    EngineOptions,
    available_providers,
    kernel_options,
    short_name,
)
from offload_runtimes.engine.values import (
    TEXT,
    UNKNOWN,
    Array,
    as_feed,
    as_feeds,
    dtype_of,
    rows_of,
    shape_fits,
    show_shape,
    size_bytes,
)

__all__ = [
    "DTYPES",
    "ORT_VERSION",
    "TEXT",
    "UNKNOWN",
    "Arena",
    "Array",
    "Call",
    "Engine",
    "EngineOptions",
    "InputShapes",
    "arena_of",
    "as_feed",
    "as_feeds",
    "available_providers",
    "dtype_of",
    "kernel_options",
    "load",
    "load_once",
    "rows_of",
    "shape_fits",
    "shared_arena",
    "short_name",
    "show_shape",
    "size_bytes",
]
