"""Tensors in the messages of KServe v2, and models as its messages describe them.

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
from offload_runtimes.protocol.tensor_specs import TensorSpec

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
_SMALL_BYTES = 4096
_LENGTH = struct.Struct("<I")
SHOWN = 80  # characters of a name that a client made up
_RAW_INPUT = kserve.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER

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


def read_outputs(
    response: kserve.ModelInferResponse, expected: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """The expected outputs of an answer as arrays; others are ignored.

    Raises:
        InputError: an output has another datatype or shape, is too large, damaged or missing.
    """
    known = {name: spec.value for name, spec in expected.items() if spec.value is not None}
    limits = {name: spec.limit_bytes for name, spec in expected.items()}
    raw = response.raw_output_contents
    checked = check_tensors("output", response.outputs, raw, known, limits)
    outputs = read_tensors(checked, response.outputs, raw)
    for name in expected:
        if name not in outputs:
            raise InputError(f"output {name!r} is missing")
    return outputs


@dataclass(frozen=True)
class CheckedTensor:
    """A tensor of a message, whose datatype and shape were checked.

    Attributes:
        index: its place in the message.
        whose: its name in error messages.
        value: its name, type and declared shape.
        shape: its shape.
        dtype: of its numbers in raw contents; None: it is text.
        size_bytes: of its numbers in raw contents.
    """

    index: int
    whose: str
    value: ModelValue
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    size_bytes: int


def check_tensors(
    what: str,
    tensors: Sequence[_Tensor],
    raw: Sequence[Buffer],
    known: Mapping[str, ModelValue],
    limits: Mapping[str, int],
) -> tuple[CheckedTensor, ...]:
    """Check the tensors with known names, but not their contents.

    `what` is the word for these tensors in error messages.

    Raises:
        InputError: a datatype, shape or size is wrong, or a tensor came twice.
    """
    # MLServer leaves empty contents beside raw ones.
    if raw and any(t.HasField("contents") and t.contents.ByteSize() for t in tensors):
        raise InputError(f"give the {what}s in raw_{what}_contents or in contents, not in both")
    if raw and len(raw) != len(tensors):
        raise InputError(f"{len(tensors)} {what}s came with {len(raw)} raw_{what}_contents")
    checked: dict[str, CheckedTensor] = {}
    for index, tensor in enumerate(tensors):
        value = known.get(tensor.name)
        if value is None:
            continue
        whose = f"{what} {tensor.name!r}"
        if tensor.name in checked:
            raise InputError(f"{whose} came twice")
        shape = _checked_shape(whose, tensor, value, limits[tensor.name])
        dtype = None if value.type == TEXT else DTYPES[value.type].newbyteorder("<")
        size_bytes = math.prod(shape) * dtype.itemsize if dtype is not None else 0
        checked[tensor.name] = CheckedTensor(index, whose, value, shape, dtype, size_bytes)
    return tuple(checked.values())


def read_tensors(
    checked: Iterable[CheckedTensor], tensors: Sequence[_Tensor], raw: Sequence[Buffer]
) -> dict[str, Any]:
    """Read tensors by name: from the raw contents or, if there are none, from the typed contents.

    `tensors` is needed for typed contents only.

    Raises:
        InputError: contents do not fit the shape, or are damaged.
    """
    if raw:
        return {each.value.name: _from_raw(each, raw[each.index]) for each in checked}
    return {
        each.value.name: _from_contents(each.whose, tensors[each.index], each.value, each.shape)
        for each in checked
    }


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


def write_stream_error(request_id: str, sentence: str) -> bytes:
    """The message of ModelStreamInfer about a request that failed."""
    response = kserve.ModelStreamInferResponse(error_message=sentence)
    response.infer_response.id = request_id
    return response.SerializeToString()


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
            f" {tensor.datatype[:SHOWN]}{show_shape(shape[:16])}"
        )
    item_bytes = _LENGTH.size if value.type == TEXT else DTYPES[value.type].itemsize
    size_bytes = math.prod(shape) * item_bytes
    if size_bytes > limit_bytes:
        raise InputError(
            f"{whose} takes {format_bytes(size_bytes)}, allowed are"
            f" {format_bytes(limit_bytes)}: use a smaller batch"
        )
    return shape


def _from_raw(tensor: CheckedTensor, contents: Buffer) -> Array:
    """The array of a tensor; contents that are `bytes` are not copied, a view of them is."""
    raw = bytes(contents)
    if tensor.dtype is None:
        return _as_text(tensor.whose, list(_elements(tensor.whose, raw)), tensor.shape)
    if len(raw) != tensor.size_bytes:
        raise InputError(
            f"{tensor.whose} came with {len(raw)} bytes,"
            f" {DATATYPES[tensor.value.type]}{show_shape(tensor.shape)} takes {tensor.size_bytes}"
        )
    return np.ndarray(tensor.shape, tensor.dtype, raw)


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


def to_raw(array: Array) -> memoryview:
    """The raw contents of an output; a large array of numbers in C order is not copied."""
    if array.dtype.hasobject:
        encoded = [str(element).encode() for element in array.flat]
        return memoryview(b"".join(_LENGTH.pack(len(each)) + each for each in encoded))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.nbytes <= _SMALL_BYTES or not array.flags.c_contiguous:
        return memoryview(array.tobytes())  # faster than a view of a small array
    return array.reshape(-1).view(np.uint8).data
