"""Tensors in the messages of KServe v2: read the inputs of a request, write the answer.

Source: the Open Inference Protocol (KServe v2), `ModelInfer`, with Triton's parameters. Raw
contents are little-endian in C order; an element of BYTES is its length (4 bytes) and its bytes,
which are UTF-8 here.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from offload.bundle.bundle import Bundle, ModelValue
from offload.errors import InputError
from offload.units import format_bytes

import offload_runtimes.protocol.kserve_pb2 as kserve
from offload_runtimes.engine import DTYPES, TEXT, Array, shape_fits, show_shape
from offload_runtimes.protocol.codecs import Buffer
from offload_runtimes.protocol.framing import field_head
from offload_runtimes.protocol.messages import PackedTensor
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES, TensorSpec

# The protocol's datatype of each tensor type of onnxruntime; it has none for the other types.
DATATYPES: Mapping[str, str] = {
    "tensor(bool)": "BOOL",
    **{
        f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    TEXT: "BYTES",
}
# The field of InferTensorContents for each datatype; FP16 and BF16 have none.
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
SERVER_PART = ".server"  # after the model's name, for the server's part of the first plan
_VERSION_DIGITS = 12  # of a bundle's digest: they fit a number of 64 bits
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"  # as Triton calls models of onnxruntime
_LENGTH = struct.Struct("<I")
_TEXT_BYTES = 32  # largest size of a Python string for one byte of its element in a request
_SHOWN = 80  # characters of a name that a client made up
_RAW_INPUT = kserve.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_RAW_OUTPUT = kserve.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_INFER_RESPONSE = kserve.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER
_FINAL = "triton_final_response"
_WANTS_FINAL = "triton_enable_empty_final_response"
_UNSUPPORTED = ("shared_memory_region", "classification", "sequence_id")

_Tensor: TypeAlias = (
    kserve.ModelInferRequest.InferInputTensor | kserve.ModelInferResponse.InferOutputTensor
)


@dataclass(frozen=True)
class ModelSignature:
    """What a model takes and gives.

    Attributes:
        name: what requests call it.
        version: of the model.
        inputs: the required inputs.
        defaults: the optional inputs, which have a default in the model.
        outputs: the outputs.
        limits: the largest size of each input.
    """

    name: str
    version: str
    inputs: tuple[ModelValue, ...]
    defaults: tuple[ModelValue, ...]
    outputs: tuple[ModelValue, ...]
    limits: Mapping[str, TensorSpec]

    @cached_property
    def known(self) -> Mapping[str, ModelValue]:
        """All inputs by name."""
        return {value.name: value for value in (*self.inputs, *self.defaults)}

    @cached_property
    def limits_bytes(self) -> Mapping[str, int]:
        """The largest size of each input."""
        return {name: spec.limit_bytes for name, spec in self.limits.items()}

    def why_not(self) -> str:
        """Why the protocol cannot carry its tensors; empty: it can."""
        for value in (*self.inputs, *self.defaults, *self.outputs):
            if value.type not in DATATYPES:
                return f"{value.name!r} is a {value.type}, which KServe v2 has no datatype for"
        return ""


def model_name(bundle: Bundle) -> str:
    """What requests call a bundle's whole model."""
    return bundle.model or bundle.path.name.removesuffix(".bundle")


def version_of(bundle: Bundle) -> str:
    """A bundle's version of its model: a whole number, which Triton's tools require."""
    return str(int(bundle.digest[:_VERSION_DIGITS], 16))


def sizes(value: ModelValue) -> list[int]:
    """The shape of a value in the protocol: -1 for any size."""
    return [size if isinstance(size, int) else -1 for size in value.shape or ()]


def model_config(model: ModelSignature) -> kserve.ModelConfig:
    """A model's configuration in Triton's form; its dims include the batch."""
    config = kserve.ModelConfig(name=model.name, platform=PLATFORM, backend=BACKEND)
    for value in (*model.inputs, *model.defaults):
        is_optional = value not in model.inputs
        config.input.add(
            name=value.name, data_type=_config_type(value), dims=sizes(value), optional=is_optional
        )
    for value in model.outputs:
        config.output.add(name=value.name, data_type=_config_type(value), dims=sizes(value))
    return config


def _config_type(value: ModelValue) -> str:
    return "TYPE_STRING" if value.type == TEXT else f"TYPE_{DATATYPES[value.type]}"


def memory_bytes(request: kserve.ModelInferRequest, size_bytes: int) -> int:
    """Largest size in memory of the inputs of a request that takes `size_bytes` itself."""
    has_text = any(tensor.datatype == DATATYPES[TEXT] for tensor in request.inputs)
    return size_bytes * (_TEXT_BYTES if has_text else 1)


def read_inputs(request: kserve.ModelInferRequest, model: ModelSignature) -> dict[str, Any]:
    """The inputs of a request as arrays; numbers in raw contents are not copied again.

    Raises:
        InputError: a name, datatype, shape, size or parameter is wrong, or an input is missing.
    """
    _check_parameters(request)
    known = model.known
    for tensor in request.inputs:
        if tensor.name not in known:
            raise InputError(
                f"model {model.name!r} has no input {tensor.name[:_SHOWN]!r}: it takes"
                f" {list(known)}"
            )
    raw = request.raw_input_contents
    feeds = _read("input", request.inputs, raw, known, model.limits_bytes)
    for value in model.inputs:
        if value.name not in feeds:
            names = [value.name for value in model.inputs]
            raise InputError(
                f"input {value.name!r} of {model.name!r} is missing: give all of {names}"
            )
    return feeds


def read_outputs(
    response: kserve.ModelInferResponse, expected: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """The expected outputs of an answer as arrays; others are ignored.

    Raises:
        InputError: an output has another datatype or shape, is too large, damaged or missing.
    """
    known = {name: spec.value for name, spec in expected.items() if spec.value is not None}
    limits = {name: spec.limit_bytes for name, spec in expected.items()}
    outputs = _read("output", response.outputs, response.raw_output_contents, known, limits)
    for name in expected:
        if name not in outputs:
            raise InputError(f"output {name!r} is missing")
    return outputs


def _read(
    what: str,
    tensors: Sequence[_Tensor],
    raw: Sequence[bytes],
    known: Mapping[str, ModelValue],
    limits: Mapping[str, int],
) -> dict[str, Any]:
    """The tensors of known names, checked; `what` they are, for messages."""
    # MLServer leaves empty contents beside raw ones.
    if raw and any(t.HasField("contents") and t.contents.ByteSize() for t in tensors):
        raise InputError(f"give the {what}s in raw_{what}_contents or in contents, not in both")
    if raw and len(raw) != len(tensors):
        raise InputError(f"{len(tensors)} {what}s came with {len(raw)} raw_{what}_contents")
    values: dict[str, Any] = {}
    for index, tensor in enumerate(tensors):
        value = known.get(tensor.name)
        if value is None:
            continue
        whose = f"{what} {tensor.name!r}"
        if tensor.name in values:
            raise InputError(f"{whose} came twice")
        shape = _checked_shape(whose, tensor, value, limits[tensor.name])
        if raw:
            values[tensor.name] = _from_raw(whose, raw[index], value, shape)
        else:
            values[tensor.name] = _from_contents(whose, tensor, value, shape)
    return values


def requested_outputs(
    request: kserve.ModelInferRequest, model: ModelSignature
) -> tuple[ModelValue, ...]:
    """The outputs that a request wants, in its order; all if it names none.

    Raises:
        InputError: the model has no such output, or one is requested twice.
    """
    if not request.outputs:
        return model.outputs
    known = {value.name: value for value in model.outputs}
    names = [output.name for output in request.outputs]
    for name in names:
        if name not in known:
            raise InputError(
                f"model {model.name!r} has no output {name[:_SHOWN]!r}: it gives {list(known)}"
            )
    if len(set(names)) < len(names):
        raise InputError(f"an output is requested twice: {names}")
    return tuple(known[name] for name in names)


def write_request(
    model: str,
    version: str,
    inputs: Sequence[tuple[ModelValue, PackedTensor]],
    outputs: Iterable[str],
) -> bytes:
    """The bytes of a request: the only copy of the inputs' bytes.

    Args:
        model: the model's name.
        version: its version; empty: the server's choice.
        inputs: the inputs and their raw bytes.
        outputs: the wanted outputs.
    """
    head = kserve.ModelInferRequest(model_name=model, model_version=version)
    parts: list[Buffer] = [b""]
    for value, packed in inputs:
        head.inputs.add(name=value.name, datatype=DATATYPES[value.type], shape=packed.shape)
        parts += [field_head(_RAW_INPUT, packed.data.nbytes), packed.data]
    for name in outputs:
        head.outputs.add(name=name)
    parts[0] = head.SerializeToString()
    return b"".join(parts)


def response_head(
    request: kserve.ModelInferRequest, model: ModelSignature
) -> kserve.ModelInferResponse:
    """The answer to a request before its outputs are known."""
    head = kserve.ModelInferResponse(
        model_name=model.name, model_version=model.version, id=request.id
    )
    if _WANTS_FINAL in request.parameters and request.parameters[_WANTS_FINAL].bool_param:
        head.parameters[_FINAL].bool_param = True
    return head


def write_response(
    head: kserve.ModelInferResponse,
    outputs: Sequence[tuple[ModelValue, Any]],
    *,
    in_stream: bool,
) -> bytes:
    """The bytes of an answer: the only copy of the outputs' bytes.

    Args:
        head: from `response_head`; the outputs are added to it.
        outputs: the outputs and their values.
        in_stream: as ModelStreamInfer sends it, inside a ModelStreamInferResponse.

    Raises:
        InputError: it is too long for one message.
    """
    parts: list[Buffer] = [b""]
    for value, array in outputs:
        head.outputs.add(name=value.name, datatype=DATATYPES[value.type], shape=array.shape)
        data = _to_raw(array)
        parts += [field_head(_RAW_OUTPUT, data.nbytes), data]
    parts[0] = head.SerializeToString()
    size_bytes = sum(memoryview(part).nbytes for part in parts)
    if size_bytes > MESSAGE_LIMIT_BYTES:
        raise InputError(
            f"the answer takes {format_bytes(size_bytes)}, one message carries"
            f" {format_bytes(MESSAGE_LIMIT_BYTES)}: use smaller inputs"
        )
    if in_stream:
        parts.insert(0, field_head(_INFER_RESPONSE, size_bytes))
    return b"".join(parts)


def write_stream_error(request_id: str, sentence: str) -> bytes:
    """The message of ModelStreamInfer about a request that failed."""
    response = kserve.ModelStreamInferResponse(error_message=sentence)
    response.infer_response.id = request_id
    return response.SerializeToString()


def _check_parameters(request: kserve.ModelInferRequest) -> None:
    """Refuse parameters that would change the answer; hints such as priorities are ignored."""
    holders: Iterable[Any] = (request, *request.inputs, *request.outputs)
    for holder in holders:
        for name in holder.parameters:
            if name in _UNSUPPORTED:
                raise InputError(f"the parameter {name!r} is not supported here: leave it out")


def _checked_shape(
    whose: str, tensor: _Tensor, value: ModelValue, limit_bytes: int
) -> tuple[int, ...]:
    """The shape of a tensor, checked with its datatype and size against the model."""
    shape = tuple(tensor.shape)
    datatype = DATATYPES[value.type]
    if (
        tensor.datatype != datatype
        or not shape_fits(value.shape, shape)
        or min(shape, default=0) < 0
    ):
        raise InputError(
            f"{whose} must be {datatype}{show_shape(value.shape)}, not"
            f" {tensor.datatype[:_SHOWN]}{show_shape(shape[:16])}"
        )
    item_bytes = _LENGTH.size if value.type == TEXT else DTYPES[value.type].itemsize
    size_bytes = math.prod(shape) * item_bytes
    if size_bytes > limit_bytes:
        raise InputError(
            f"{whose} takes {format_bytes(size_bytes)}, allowed are"
            f" {format_bytes(limit_bytes)}: use a smaller batch"
        )
    return shape


def _from_raw(whose: str, raw: bytes, value: ModelValue, shape: tuple[int, ...]) -> Array:
    if value.type == TEXT:
        return _as_text(whose, list(_elements(whose, raw)), shape)
    dtype = DTYPES[value.type].newbyteorder("<")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{whose} came with {len(raw)} bytes,"
            f" {DATATYPES[value.type]}{show_shape(shape)} takes"
            f" {math.prod(shape) * dtype.itemsize}"
        )
    return np.ndarray(shape, dtype, raw)


def _elements(whose: str, raw: bytes) -> Iterable[bytes]:
    """The elements of a BYTES tensor in raw contents."""
    at = 0
    while at < len(raw):
        end = at + _LENGTH.size
        size = _LENGTH.unpack_from(raw, at)[0] if end <= len(raw) else len(raw)
        if end + size > len(raw):
            raise InputError(f"{whose}: its raw BYTES end within an element")
        yield raw[end : end + size]
        at = end + size


def _from_contents(whose: str, tensor: _Tensor, value: ModelValue, shape: tuple[int, ...]) -> Array:
    datatype = DATATYPES[value.type]
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InputError(f"{whose} is {datatype}, which must be in raw contents")
    others = [known.name for known, _ in tensor.contents.ListFields() if known.name != field]
    if others:
        raise InputError(f"{whose} is {datatype}: give {field}, not {others[0]}")
    elements = getattr(tensor.contents, field)
    if value.type == TEXT:
        return _as_text(whose, list(elements), shape)
    dtype = DTYPES[value.type]
    if len(elements) != math.prod(shape):
        raise _wrong_count(whose, len(elements), shape)
    try:
        array: Array = np.array(list(elements), dtype)
    except OverflowError as error:
        raise InputError(f"{whose} holds a number that {datatype} cannot") from error
    return array.reshape(shape)


def _as_text(whose: str, elements: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    if len(elements) != math.prod(shape):
        raise _wrong_count(whose, len(elements), shape)
    array: Array = np.empty(len(elements), object)
    try:
        array[:] = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise InputError(f"{whose} holds bytes that are not UTF-8 text") from error
    return array.reshape(shape)


def _wrong_count(whose: str, count: int, shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"{whose} came with {count} elements, its shape {show_shape(shape)} has {math.prod(shape)}"
    )


def _to_raw(array: Array) -> memoryview:
    """The raw contents of an output; an array of numbers in C order is not copied."""
    if array.dtype == object:
        encoded = [str(element).encode() for element in array.flat]
        return memoryview(b"".join(_LENGTH.pack(len(each)) + each for each in encoded))
    if array.dtype.str[0] == ">" or not array.flags.c_contiguous:
        array = array.astype(array.dtype.newbyteorder("<"), order="C")
    return array.reshape(-1).view(np.uint8).data
