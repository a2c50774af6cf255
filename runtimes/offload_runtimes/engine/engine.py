"""A model loaded into onnxruntime, run with checked inputs and an optional deadline."""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from offload.bundle.bundle import DTYPES, ModelValue
from offload.errors import DeadlineError, InputError
from offload.units import format_s

from offload_runtimes.engine import values
from offload_runtimes.engine.arena import Arena, lack_of_memory
from offload_runtimes.engine.options import (
    CPU,
    GPU_PROVIDERS,
    EngineOptions,
    gpu_number,
    missing_library,
    preload,
    require,
    resolve_providers,
    session_options,
    short_name,
)
from offload_runtimes.engine.timer import ALARM
from offload_runtimes.engine.values import Array

InputShapes: TypeAlias = Mapping[str, tuple[int, ...]]  # by name

# Where ORT looks for the external data of a model that is given as bytes.
_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_NO_SUCH_GPU = ("invalid device ordinal", "Invalid device ID")  # words of CUDA and of ORT
# By default CUDA rounds float32 to TF32, 10 bits, so that an answer would depend on the side that
# computed it: by 1 to 2 % of the largest value for networks of the zoo on an H200. By default cuDNN
# tries all algorithms after each change of shape; the choice by its heuristics is faster.
_SETTINGS = {"CUDAExecutionProvider": {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}}


class Engine:
    """One loaded model; `run` may be called from several threads at once.

    Attributes:
        name: the file's name, for messages.
        inputs: the required inputs, in the model's order.
        outputs: the outputs, in the model's order.
        defaults: the optional inputs, which have a default in the model.
        providers: the execution providers in use, by ORT's names.
        on_gpu: whether the first of them computes on an NVIDIA GPU.
    """

    def __init__(
        self, session: ort.InferenceSession, name: str, arena: Arena | None = None
    ) -> None:
        self._session = session
        self._arena = arena
        self.name = name
        self.inputs = tuple(_value(node) for node in session.get_inputs())
        self.outputs = tuple(_value(node) for node in session.get_outputs())
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self.on_gpu = self.providers[0] in GPU_PROVIDERS
        optional = session.get_overridable_initializers()
        self.defaults = tuple(_value(node) for node in optional)
        self._inputs = {value.name: value for value in self.inputs}
        self._defaults = {value.name: value for value in self.defaults}
        self._output_names = [value.name for value in self.outputs]
        accepted = (*self.inputs, *self.defaults)
        self._carried = any(values.is_carried(value.type) for value in accepted)
        self._carried_outputs = {v.name for v in self.outputs if values.is_carried(v.type)}

    @property
    def provider(self) -> str:
        """Short name of the first provider: `cpu`, `cuda`, and `cuda:1` on the second GPU."""
        options = self._session.get_provider_options().get(self.providers[0], {})
        number = options.get("device_id", "0") if self.on_gpu else "0"
        return short_name(self.providers[0]) + ("" if number == "0" else f":{number}")

    def run(
        self,
        outputs: Sequence[str] | None,
        feeds: Mapping[str, Array],
        deadline_s: float | None = None,
    ) -> list[Array]:
        """Compute outputs from inputs.

        Args:
            outputs: names of the outputs to compute, in that order; None: all.
            feeds: a value for every input: an array, a list for a sequence, a dict for a map.
            deadline_s: stop after this many seconds, between two kernels.

        Raises:
            InputError: a name, dtype or shape is wrong, or ORT cannot compute this input.
            DeadlineError: the run was stopped.
        """
        return self.prepare(deadline_s).run(outputs, feeds)

    def prepare(self, deadline_s: float | None = None) -> "Call":
        """A run that another thread may stop, before or while it runs."""
        return Call(self, deadline_s)

    def warm(self, limit_s: float = 5.0, shapes: InputShapes = MappingProxyType({})) -> None:
        """Run once on zeros, so that the first real run finds memory allocated.

        Does nothing where a size is dynamic and `shapes` has no shape for that input, or where
        zeros are not a possible input; stops after `limit_s`, because a model may loop for ever.
        """
        feeds = self.zeros(shapes)
        if feeds is not None:
            with contextlib.suppress(InputError, DeadlineError):
                self.run(None, feeds, limit_s)

    def end_profiling(self) -> Path:
        """Write ORT's profile of the runs so far, if the settings enable it; its path."""
        return Path(self._session.end_profiling())

    def zeros(self, shapes: InputShapes = MappingProxyType({})) -> dict[str, Array] | None:
        """Inputs of zeros to warm up with; None when a size is dynamic and not in `shapes`."""
        feeds: dict[str, Array] = {}
        for value in self.inputs:
            shape = shapes.get(value.name, value.shape)
            fixed = [size for size in shape or () if isinstance(size, int)]
            if shape is None or len(fixed) < len(shape) or value.type not in DTYPES:
                return None
            feeds[value.name] = np.zeros(fixed, DTYPES[value.type])
        return feeds

    def compute(
        self, outputs: Sequence[str] | None, feeds: Mapping[str, Array], options: ort.RunOptions
    ) -> list[Array]:
        """Check the feeds and run with ORT's own options for one run."""
        names = self._output_names if outputs is None else list(outputs)
        if names != self._output_names:
            for name in names:
                if name not in self._output_names:
                    raise InputError(f"{self.name} has no output {name!r}: {self._output_names}")
        feeds = values.as_feeds(self.name, self._inputs, self._defaults, feeds)
        try:
            return self._computed(names, feeds, options)
        except InputError:
            raise
        except Exception as error:
            if self._arena is None or lack_of_memory(error) is None:
                raise self._refusal(error) from error
        self._arena.sweep()
        try:
            return self._computed(names, feeds, options)
        except Exception as error:
            raise self._refusal(error) from error

    def _computed(
        self, names: list[str], feeds: Mapping[str, Any], options: ort.RunOptions
    ) -> list[Any]:
        """Run ORT; values of types that numpy lacks are passed and returned as OrtValues."""
        if not self._carried and not self._carried_outputs:
            arrays: list[Any] = self._session.run(names, dict(feeds), options)
            return arrays
        known = {**self._defaults, **self._inputs}
        if self._carried_outputs.isdisjoint(names):
            mixed = {
                name: values.to_ort(value, known[name].type)
                if values.is_carried(known[name].type)
                else value
                for name, value in feeds.items()
            }
            results: list[Any] = self._session.run(names, mixed, options)
            return results
        # Here all inputs must be OrtValues, and all outputs are.
        for name in feeds:
            if known[name].type not in DTYPES:
                raise self._beside_carried(known[name])
        for output in self.outputs:
            if output.name in names and not output.type.startswith("tensor("):
                raise self._beside_carried(output)
        wrapped = {name: values.to_ort(array, known[name].type) for name, array in feeds.items()}
        outputs = self._session.run_with_ort_values(names, wrapped, options)
        return [values.from_ort(value) for value in outputs]

    def _beside_carried(self, value: ModelValue) -> InputError:
        carried = next(v for v in self.outputs if v.name in self._carried_outputs)
        return InputError(
            f"{self.name} has {value.name!r} ({value.type}) and {carried.name!r}"
            f" ({carried.type}), which onnxruntime's Python interface cannot compute together:"
            " cast the latter to float in the model"
        )

    def _refusal(self, error: Exception) -> InputError:
        """ORT's error in one sentence."""
        lack = lack_of_memory(error)
        if lack is None:
            return InputError(f"{self.name} cannot be computed: {first_line(error)}")
        rule = "" if self._arena is None else f" ({self._arena.rule})"
        return InputError(f"{self.name} {lack}{rule}: give it smaller inputs, or more memory")


class Call:
    """One run of an engine that can be stopped between two kernels, by time or by `stop`.

    Attributes:
        deadline_s: seconds after which it is stopped; None: never.
    """

    def __init__(self, engine: Engine, deadline_s: float | None) -> None:
        self.deadline_s = deadline_s
        self._engine = engine
        self._options = ort.RunOptions()
        self._options.log_severity_level = 4

    def stop(self) -> None:
        """End the run, or keep it from beginning; it raises DeadlineError."""
        self._options.terminate = True

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Run it; arguments and errors as `Engine.run`."""
        cancel = None
        if self.deadline_s is not None:
            cancel = ALARM.at(time.monotonic() + self.deadline_s, self.stop)
        try:
            return self._engine.compute(outputs, feeds, self._options)
        except InputError as error:
            if not self._options.terminate:
                raise
            limit_s = self.deadline_s
            allowed = "" if limit_s is None else f" (the limit is {format_s(limit_s)})"
            raise DeadlineError(
                f"{self._engine.name} was stopped before it finished{allowed}: allow more time"
            ) from error
        finally:
            if cancel:
                cancel()


def load(
    model: str | Path | bytes, options: EngineOptions | None = None, arena: Arena | None = None
) -> Engine:
    """Load a model from a file (its external data beside it) or from bytes.

    In bytes, paths of external data start at the root directory (`offload.bundle.engine_input`).
    Libraries of custom operators are never loaded. With an arena, the model takes its memory from
    it.

    Raises:
        InputError: no such file, onnxruntime refuses the model, or the arena is too small for it.
    """
    options = options or EngineOptions()
    settings = session_options(options)
    if arena is not None:
        arena.lend(settings)
    engine = open_engine(model, settings, options, arena)
    if arena is not None:
        arena.check(engine.name)
    return engine


def load_once(model: str | Path | bytes, options: EngineOptions | None = None) -> Engine:
    """Load a model that runs a few times and is not timed; as `load`.

    It frees the memory of a run when the run ends, where `load` keeps it for the next.
    """
    options = options or EngineOptions()
    settings = session_options(options)
    settings.enable_cpu_mem_arena = False
    return open_engine(model, settings, options)


def open_engine(
    model: str | Path | bytes,
    settings: ort.SessionOptions,
    options: EngineOptions,
    arena: Arena | None = None,
) -> Engine:
    """Load a model with ORT's own settings; the arena must have been lent to them.

    Raises:
        InputError: ORT refuses the model, or a provider is missing and the CPU is not allowed.
    """
    allow_cpu = options.allow_cpu
    gpu = gpu_number(options.providers)
    providers = resolve_providers(options.providers, allow_cpu)
    if isinstance(model, bytes):
        source: Any = model
        name, where = "model", "the model"
        settings.add_session_config_entry(_EXTERNAL_DATA_FOLDER, "/")
    else:
        source = os.fspath(model)
        name, where = Path(model).name, source
        if not Path(model).is_file():
            raise InputError(f"{model} does not exist: give an ONNX file")
    preload(providers)
    try:
        session = _session(source, settings, providers, gpu)
    except Exception as error:
        require(providers, [p for p in providers if not missing_library(p)], allow_cpu)
        if not allow_cpu and any(words in str(error) for words in _NO_SUCH_GPU):
            raise InputError(
                f"this machine has no GPU {gpu or 0}: `nvidia-smi -L` lists its GPUs,"
                " CUDA_VISIBLE_DEVICES may hide some"
            ) from error
        if not allow_cpu or providers == [CPU]:
            on = f" on {providers[0]}" if providers != [CPU] else ""
            raise InputError(f"onnxruntime refuses {where}{on}: {first_line(error)}") from error
        session = _session(source, settings, [CPU])
    require(providers, session.get_providers(), allow_cpu)
    return Engine(session, name, arena)


def _session(
    source: Any, settings: ort.SessionOptions, providers: Sequence[str], gpu: int | None = None
) -> ort.InferenceSession:
    """A session without ORT's own fallback, which prints to stdout and changes the provider."""
    return ort.InferenceSession(
        source, settings, providers=_with_options(providers, gpu), enable_fallback=0
    )


def _with_options(
    providers: Sequence[str], gpu: int | None
) -> list[str | tuple[str, dict[str, Any]]]:
    """Providers as ORT takes them, those of GPUs with the number of the GPU and our settings."""
    given: list[str | tuple[str, dict[str, Any]]] = []
    for name in providers:
        settings = dict(_SETTINGS.get(name, {}))
        if gpu is not None and name in GPU_PROVIDERS:
            settings["device_id"] = gpu
        given.append((name, settings) if settings else name)
    return given


def first_line(error: Exception) -> str:
    """The first line of ORT's message, without its code."""
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    return line.split(" : ", 3)[-1].strip() if line.startswith("[ONNXRuntimeError]") else line


def _value(node: ort.NodeArg) -> ModelValue:
    # ORT gives the same empty list for a scalar and for a tensor of unknown rank.
    return ModelValue(node.name, node.type, tuple(node.shape) or None)
