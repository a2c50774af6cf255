"""Export the server's part of a bundle as a model of Triton's repository.

A repository is a folder of models, each with `config.pbtxt` (a `ModelConfig` in protobuf's text
format) and a folder for each version, here only `1`, with `model.onnx` and its weights.
Source: Triton's documentation of the model repository and the model configuration.
"""

import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from google.protobuf import text_format
from offload.bundle.bundle import Bundle, ModelValue
from offload.errors import InputError
from offload.files import staged_folder
from offload.planning.plan import Segment, Side

from offload_runtimes.engine import EngineOptions, load_once
from offload_runtimes.protocol.kserve_messages import (
    BACKEND,
    DATATYPES,
    SERVER_PART,
    ModelSignature,
    model_config,
    model_name,
)
from offload_runtimes.protocol.tensor_specs import TENSOR_LIMIT_BYTES, input_specs

CONFIG = "config.pbtxt"
_MODEL = "model.onnx"


class InstanceKind(StrEnum):
    """Where Triton runs the instances of a model."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class TritonOptions:
    """How Triton should run an exported model.

    Attributes:
        name: the model's name; empty: the bundle's model name with `.server`.
        max_batch: the most rows that Triton runs in one call, where rows are independent; 0: each
            request alone.
        kind: where its instances run.
        instances: instances on the CPU or on each GPU.
    """

    name: str = ""
    max_batch: int = 8
    kind: InstanceKind = InstanceKind.AUTO
    instances: int = 1

    def __post_init__(self) -> None:
        if self.max_batch < 0 or self.instances < 1:
            raise InputError("max_batch must be at least 0, and instances at least 1")


@dataclass(frozen=True, slots=True)
class TritonModel:
    """A model that was exported.

    Attributes:
        path: its folder in the repository.
        name: its name, as requests call it.
        max_batch: the most rows of one call; 0: each request runs alone.
        why_alone: why rows are not batched; empty: they are.
    """

    path: Path
    name: str
    max_batch: int
    why_alone: str


def export_triton(
    bundle: Bundle, repository: Path, options: TritonOptions | None = None
) -> TritonModel:
    """Write the server's part of a bundle's plan into a model repository, atomically.

    The repository is created if it is missing; other models in it stay. A model of the same name is
    replaced.

    Raises:
        InputError: the bundle lacks the server's files, its plan has no server's part or one of
            several segments, Triton has no datatype for a tensor, or the name is not a folder's.
        OSError: the disk refuses.
    """
    options = options or TritonOptions()
    segment = _server_segment(bundle)
    name = options.name or f"{model_name(bundle)}{SERVER_PART}"
    if not name.isprintable() or Path(name).name != name or name.startswith("."):
        raise InputError(f"model name {name!r} is not the name of a folder: give one with --name")
    engine = load_once(bundle.segment_path(segment.part), EngineOptions())
    values = (*engine.inputs, *engine.defaults)
    signature = ModelSignature(
        name,
        "1",
        engine.inputs,
        engine.defaults,
        engine.outputs,
        input_specs(values, TENSOR_LIMIT_BYTES),
    )
    why_alone = _why_alone(bundle, segment, signature, options)
    config = model_config(signature)
    if not why_alone:
        config.max_batch_size = options.max_batch
        config.dynamic_batching.SetInParent()
        for dims in (
            tensor.dims for several in (config.input, config.output) for tensor in several
        ):
            del dims[0]
    config.default_model_filename = _MODEL
    config.instance_group.add(kind=f"KIND_{options.kind.value.upper()}", count=options.instances)
    path = repository / name
    if path.exists() and not (path / CONFIG).is_file():
        raise InputError(f"{path} exists and is not a model of Triton: choose another name")
    repository.mkdir(exist_ok=True)
    with staged_folder(path) as staged:
        version = staged / "1"
        version.mkdir()
        shutil.copyfile(bundle.segment_path(segment.part), version / _MODEL)
        for file in bundle.files:
            if Side.SERVER in file.sides and file.name.endswith(".weights"):
                shutil.copyfile(bundle.path / file.name, version / file.name)
        (staged / CONFIG).write_text(text_format.MessageToString(config))
    return TritonModel(path, name, config.max_batch_size, why_alone)


def _server_segment(bundle: Bundle) -> Segment:
    if not bundle.holds(Side.SERVER):
        raise InputError(f"{bundle.path} lacks the server's files: export from the whole bundle")
    segments = bundle.plan.on(Side.SERVER)
    if not segments:
        raise InputError("the plan runs all layers on the device: there is nothing to export")
    if len(segments) > 1:
        raise InputError(
            f"the server's part is {len(segments)} segments, which start as uploads arrive, and"
            " Triton runs one model: split again with --backend kserve"
        )
    return segments[0]


def _why_alone(
    bundle: Bundle, segment: Segment, model: ModelSignature, options: TritonOptions
) -> str:
    """Why Triton must not join rows of several requests; empty: it may.

    Raises:
        InputError: Triton cannot take a tensor.
    """
    if reason := model.why_not():
        raise InputError(f"Triton cannot serve this part: {reason}")
    values: tuple[ModelValue, ...] = (*model.inputs, *model.defaults, *model.outputs)
    for value in values:
        if not value.shape:
            raise InputError(
                f"tensor {value.name!r} has no dimensions or an unknown number of them, which"
                f" {BACKEND} models of Triton cannot have: cut elsewhere"
            )
    if options.max_batch < 2:
        return "it was not requested"
    if reason := bundle.why_alone(segment.part):
        return reason
    if model.defaults:
        return f"its input {model.defaults[0].name!r} is optional"
    for value in values:
        sizes = value.shape or ()
        if isinstance(sizes[0], int) or len(sizes) < 2:
            return f"{DATATYPES[value.type]} {value.name!r} has no row for each row of the batch"
    return ""
