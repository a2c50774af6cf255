"""Requests of KServe v2 on the server: check them, read their inputs, write their answers.

The header of a request is all but its id and the contents of its inputs: names, datatypes, shapes,
parameters, requested outputs. A client usually sends the same header with each request. A header
that was checked before is recognised by its bytes, and is neither parsed nor checked again.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from offload.bundle.bundle import ModelValue
from offload.errors import InputError
from offload.units import format_bytes

import offload_runtimes.protocol.kserve_pb2 as kserve
from offload_runtimes.engine import TEXT
from offload_runtimes.protocol.codecs import Buffer
from offload_runtimes.protocol.framing import (
    CONTINUED,
    TAG_MASK,
    WIRE_BYTES,
    field_head,
    field_length,
)
from offload_runtimes.protocol.kserve_messages import (
    DATATYPES,
    SHOWN,
    ModelSignature,
    check_tensors,
    read_tensors,
    to_raw,
)
from offload_runtimes.protocol.tensor_specs import MESSAGE_LIMIT_BYTES

_MOST_FIELDS, _MOST_HEADER_BYTES = 256, 4096  # of a request that is split
_TEXT_BYTES = 32  # largest size of a Python string for one byte of its element in a request
_ID_TAG: Final = kserve.ModelInferRequest.ID_FIELD_NUMBER << 3 | WIRE_BYTES
_RAW_TAG: Final = kserve.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | WIRE_BYTES
_ID = kserve.ModelInferResponse.ID_FIELD_NUMBER
_RAW_OUTPUT = kserve.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_INFER_RESPONSE = kserve.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER
_FINAL = "triton_final_response"
_WANTS_FINAL = "triton_enable_empty_final_response"
_UNSUPPORTED = ("shared_memory_region", "classification", "sequence_id")


class RequestParts(NamedTuple):
    """The parts of a request's bytes.

    Attributes:
        header: all other fields, as they came.
        id: the client's name for the request.
        raw: the raw contents of each input; nothing is copied.
    """

    header: bytes
    id: str
    raw: Sequence[memoryview]


def split_request(data: bytes) -> RequestParts | None:
    """Split the bytes of a request into its parts, without parsing it.

    Returns None for a request that must be parsed: it is damaged, it has more than 256 fields or a
    header of more than 4 kB, or the type of a field is unknown.
    """
    header: list[bytes] = []
    header_bytes = fields = 0
    raw: list[memoryview] = []
    request_id = b""
    view = memoryview(data)
    at, end = 0, len(data)
    try:
        while at < end:
            tag, size, begin = data[at], data[at + 1], at + 2
            fields += 1
            if tag & TAG_MASK != WIRE_BYTES or fields > _MOST_FIELDS:
                return None
            if size >= CONTINUED:
                size, begin = field_length(data, at + 1)
            after = begin + size
            if after > end:
                return None
            if tag == _RAW_TAG:
                raw.append(view[begin:after])
            elif tag == _ID_TAG:
                request_id = data[begin:after]
            else:
                header_bytes += after - at
                if header_bytes > _MOST_HEADER_BYTES:
                    return None
                header.append(data[at:after])
            at = after
        return RequestParts(b"".join(header), request_id.decode(), raw)
    except (IndexError, DecodeError, UnicodeDecodeError):
        return None


class RequestHeader:
    """The header of a request, parsed and checked.

    Attributes:
        outputs: the requested outputs, in the request's order.
        has_text: whether an input is text.
        inputs: number of inputs.
    """

    def __init__(self, message: kserve.ModelInferRequest, model: ModelSignature) -> None:
        """Check a request for a model.

        Raises:
            InputError: a name, datatype, shape, size or parameter is wrong, or an input is missing.
        """
        self.outputs = _requested_outputs(message, model)
        self.has_text = _has_text(message)
        self.inputs = len(message.inputs)
        _check_parameters(message)
        known = model.known
        for tensor in message.inputs:
            if tensor.name not in known:
                raise InputError(
                    f"model {model.name!r} has no input {tensor.name[:SHOWN]!r}: it takes"
                    f" {list(known)}"
                )
        raw = message.raw_input_contents
        self._tensors = check_tensors("input", message.inputs, raw, known, model.limits_bytes)
        given = {tensor.value.name for tensor in self._tensors}
        for value in model.inputs:
            if value.name not in given:
                names = [value.name for value in model.inputs]
                raise InputError(
                    f"input {value.name!r} of {model.name!r} is missing: give all of {names}"
                )
        self._answer = kserve.ModelInferResponse(model_name=model.name, model_version=model.version)
        if _WANTS_FINAL in message.parameters and message.parameters[_WANTS_FINAL].bool_param:
            self._answer.parameters[_FINAL].bool_param = True
        self._written: tuple[list[tuple[int, ...]], bytes] = [], b""

    def read(self, request: "ReceivedRequest") -> dict[str, Any]:
        """The inputs of a request as arrays.

        Raises:
            InputError: contents do not fit their shape, or are damaged.
        """
        typed = () if request.message is None else request.message.inputs
        return read_tensors(self._tensors, typed, request.raw)

    def write_answer(self, request_id: str, outputs: Sequence[Any], *, in_stream: bool) -> bytes:
        """The bytes of an answer: the only copy of the outputs' bytes.

        Args:
            request_id: the client's name for the request.
            outputs: the values of the requested outputs.
            in_stream: as ModelStreamInfer sends it, inside a ModelStreamInferResponse.

        Raises:
            InputError: it is too long for one message.
        """
        parts: list[Buffer] = [self._answer_header([array.shape for array in outputs])]
        if request_id:
            encoded = request_id.encode()
            parts += field_head(_ID, len(encoded)), encoded
        for array in outputs:
            data = to_raw(array)
            parts += field_head(_RAW_OUTPUT, data.nbytes), data
        size_bytes = sum(map(len, parts))
        if size_bytes > MESSAGE_LIMIT_BYTES:
            raise InputError(
                f"the answer takes {format_bytes(size_bytes)}, one message carries"
                f" {format_bytes(MESSAGE_LIMIT_BYTES)}: use smaller inputs"
            )
        if in_stream:
            parts.insert(0, field_head(_INFER_RESPONSE, size_bytes))
        return b"".join(parts)

    def _answer_header(self, shapes: list[tuple[int, ...]]) -> bytes:
        """All fields of an answer but the id and the raw contents; kept for equal shapes."""
        before, written = self._written
        if before != shapes or not written:
            answer = kserve.ModelInferResponse()
            answer.CopyFrom(self._answer)
            for value, shape in zip(self.outputs, shapes, strict=True):
                answer.outputs.add(name=value.name, datatype=DATATYPES[value.type], shape=shape)
            written = answer.SerializeToString()
            self._written = shapes, written  # one assignment: several threads may use this
        return written


class ReceivedRequest:
    """A ModelInferRequest that a client sent.

    Attributes:
        id: the client's name for it.
        raw: the raw contents of its inputs.
        message: the parsed request; None: its header was checked before.
        when_checked: called with the header after it was checked.
    """

    def __init__(
        self,
        size_bytes: int,
        request_id: str,
        raw: Sequence[Buffer],
        message: kserve.ModelInferRequest | None,
        header: RequestHeader | None = None,
    ) -> None:
        """A request of this many bytes; either its message or its header is given."""
        self.id = request_id
        self.raw = raw
        self.message = message
        self.when_checked: Callable[[RequestHeader], None] = lambda _: None
        self._size_bytes = size_bytes
        self._header = header

    @property
    def memory_bytes(self) -> int:
        """Largest size in memory of its inputs."""
        if self._header is not None:
            has_text = self._header.has_text
        else:
            assert self.message is not None
            has_text = _has_text(self.message)
        return self._size_bytes * (_TEXT_BYTES if has_text else 1)

    def checked(self, model: ModelSignature) -> RequestHeader:
        """Return the header; check it for a model, unless it was checked before.

        Raises:
            InputError: as for `RequestHeader`.
        """
        if self._header is None:
            assert self.message is not None
            self._header = RequestHeader(self.message, model)
            self.when_checked(self._header)
        return self._header


def _has_text(message: kserve.ModelInferRequest) -> bool:
    return any(tensor.datatype == DATATYPES[TEXT] for tensor in message.inputs)


def _requested_outputs(
    request: kserve.ModelInferRequest, model: ModelSignature
) -> tuple[ModelValue, ...]:
    """The outputs that a request asks for, in its order; all outputs if it names none.

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
                f"model {model.name!r} has no output {name[:SHOWN]!r}: it gives {list(known)}"
            )
    if len(set(names)) < len(names):
        raise InputError(f"an output is requested twice: {names}")
    return tuple(known[name] for name in names)


def _check_parameters(request: kserve.ModelInferRequest) -> None:
    """Refuse parameters that would change the answer; hints such as priorities are ignored."""
    holders: Iterable[Any] = (request, *request.inputs, *request.outputs)
    for holder in holders:
        for name in holder.parameters:
            if name in _UNSUPPORTED:
                raise InputError(f"the parameter {name!r} is not supported here: leave it out")
