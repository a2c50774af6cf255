"""The one door to onnxruntime: load a model, run it, time it, ask what it is made of."""

from onnxruntime import __version__ as ORT_VERSION  # noqa: N812  (a constant of the library)

from offload_runtimes.engine.arena import Arena, arena_of
from offload_runtimes.engine.engine import Call, Engine, load
from offload_runtimes.engine.inspect import (
    NodeTime,
    optimize_to,
    profile_nodes,
    tensor_types,
)
from offload_runtimes.engine.options import EngineOptions
from offload_runtimes.engine.values import Array, check_feed, dtype_of, shape_fits, show_shape

__all__ = [
    "ORT_VERSION",
    "Arena",
    "Array",
    "Call",
    "Engine",
    "EngineOptions",
    "NodeTime",
    "arena_of",
    "check_feed",
    "dtype_of",
    "load",
    "optimize_to",
    "profile_nodes",
    "shape_fits",
    "show_shape",
    "tensor_types",
]
