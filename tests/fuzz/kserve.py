"""Fuzz KServe v2: requests on the server, answers on the device, of every datatype."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve
from google.protobuf.message import DecodeError
from offload.bundle.bundle import ModelValue
from offload.errors import OffloadError
from offload.planning.plan import Segment, Side
from offload_runtimes.engine import DTYPES, size_bytes
from offload_runtimes.protocol import kserve_messages as messages
from offload_runtimes.protocol.kserve_messages import DATATYPES, ModelSignature
from offload_runtimes.protocol.kserve_requests import (
    ReceivedRequest,
    RequestHeader,
    RequestParts,
    split_request,
)
from offload_runtimes.protocol.kserve_state import InferenceRequest, ServedModel, answer_at_once
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.server_state import Event, Reply, RunSegment
from offload_runtimes.protocol.tensor_specs import Contract, TensorSpecs, input_specs

from tests.fuzz.draw import Draw

LIMIT_BYTES = 4096
_TYPES = {
    "a": "tensor(float)",
    "b": "tensor(int8)",
    "c": "tensor(bfloat16)",
    "d": "tensor(bool)",
    "e": "tensor(string)",
    "f": "tensor(uint64)",
    "x": "tensor(float16)",
    "y": "tensor(string)",
}
_SHAPES: dict[str, tuple[int | str, ...]] = {"a": ("n", 3), "b": (2,), "f": ()}
_FIELDS = [field.name for field in kserve.InferTensorContents.DESCRIPTOR.fields]


def _values(names: str) -> tuple[ModelValue, ...]:
    return tuple(ModelValue(name, _TYPES[name], _SHAPES.get(name, ("n",))) for name in names)


def _model() -> ServedModel:
    """Two segments, one after the other; `d` is optional."""
    inputs, defaults, outputs = _values("abcef"), _values("d"), _values("xy")
    limits = input_specs((*inputs, *defaults), LIMIT_BYTES)
    segments = (
        Segment("1", Side.SERVER, (), (), ("a", "b", "c"), ("x",)),
        Segment("2", Side.SERVER, (), (), ("x", "e", "f"), ("y",)),
    )
    contract = Contract("d" * 64, segments, limits, TensorSpecs({}), {"2": ("d",)})
    return ServedModel(ModelSignature("m", "1", inputs, defaults, outputs, limits), contract)


MODEL = _model()


def _tensor(draw: Draw, tensor: Any, name: str, raw: Any) -> None:
    """A valid or nearly valid tensor, typed or raw."""
    kind = _TYPES.get(name, "tensor(float)")
    tensor.name = name
    tensor.datatype = DATATYPES[kind] if draw.byte() < 230 else draw.blob().decode("latin-1")
    declared = _SHAPES.get(name, ("n",))
    shape = [size if isinstance(size, int) else draw.number() % 5 for size in declared]
    if draw.byte() > 230:
        shape = [draw.number() % 2**63 - draw.byte() for _ in range(draw.byte() % 4)]
    tensor.shape.extend(shape)
    count = abs(math.prod(shape)) % 64
    if draw.byte() < 200:
        width = 4 if kind == "tensor(string)" else DTYPES[kind].itemsize
        raw.append(draw.take(count * width).ljust(count * width, b"\0"))
        return
    field = draw.one_of(_FIELDS)
    elements = getattr(tensor.contents, field)
    for _ in range(count if draw.byte() < 200 else draw.byte()):
        elements.append(draw.blob() if field == "bytes_contents" else draw.byte() % 2)


def _request(draw: Draw) -> kserve.ModelInferRequest:
    request = kserve.ModelInferRequest(model_name="m", id=draw.blob().decode("latin-1"))
    names = "abcef" if draw.byte() < 200 else "".join(draw.one_of("abcdefz") for _ in range(7))
    for name in names:
        _tensor(draw, request.inputs.add(), name, request.raw_input_contents)
    for _ in range(draw.byte() % 3):
        request.outputs.add(name=draw.one_of("xxyyz"))
    if draw.byte() > 240:
        request.parameters[draw.one_of(("sequence_id", "priority"))].int64_param = draw.byte()
    return request


def _response(draw: Draw) -> kserve.ModelInferResponse:
    response = kserve.ModelInferResponse(model_name="m")
    for name in "xy" if draw.byte() < 200 else "xyz":
        _tensor(draw, response.outputs.add(), name, response.raw_output_contents)
    return response


def kserve_messages(data: bytes) -> None:
    """A request through a server's state and an answer on the device: never an exception."""
    draw = Draw(data)
    kind = draw.byte() % 4
    with suppress(DecodeError):
        if kind == 0:
            request = draw.rest()
            parts = split_request(request)
            _serve(kserve.ModelInferRequest.FromString(request), draw, parts)
        elif kind == 1:
            _read(kserve.ModelInferResponse.FromString(draw.rest()))
        elif kind == 2:
            _serve(_request(draw), draw)
        else:
            _read(_response(draw))


def _read(response: kserve.ModelInferResponse) -> None:
    with suppress(OffloadError):
        limits = input_specs(MODEL.signature.outputs, LIMIT_BYTES)
        for value in messages.read_outputs(response, limits).values():
            assert size_bytes(value) <= 64 * LIMIT_BYTES


def _serve(
    request: kserve.ModelInferRequest, draw: Draw, parts: RequestParts | None = None
) -> None:
    memory = MemoryBudget(16 * LIMIT_BYTES)
    choice = draw.byte()
    in_stream = choice % 2 == 1
    answer = _answer_at_once if choice & 2 else _run_by_workers
    reply = answer(_came(request, draw, parts), memory, draw, in_stream)
    assert memory.held_bytes == 0
    if in_stream and reply:
        kserve.ModelStreamInferResponse.FromString(reply)
    elif reply:
        kserve.ModelInferResponse.FromString(reply)


def _came(
    message: kserve.ModelInferRequest, draw: Draw, parts: RequestParts | None
) -> ReceivedRequest:
    """A request as the server has it: parsed, or with a header that was checked before.

    Its parts must be what protobuf reads; by default they are those that protobuf would write.
    """
    data = message.SerializeToString()
    parts = parts or split_request(data)
    if parts is not None:
        assert parts.id == message.id
        assert [bytes(raw) for raw in parts.raw] == list(message.raw_input_contents)
    if parts is not None and len(parts.raw) == len(message.inputs) and draw.byte() % 2:
        with suppress(OffloadError):
            header = RequestHeader(message, MODEL.signature)
            return ReceivedRequest(len(data), parts.id, parts.raw, None, header)
    return ReceivedRequest(len(data), message.id, message.raw_input_contents, message)


def _answer_at_once(
    request: ReceivedRequest, memory: MemoryBudget, draw: Draw, in_stream: bool
) -> bytes:
    def run(segment: Segment, _: dict[str, Any]) -> list[Any]:
        if draw.byte() > 240:
            raise OffloadError("it cannot be computed")
        return list(_computed(segment.outputs, draw).values())

    reservation = memory.reserve(lambda: None)
    try:
        return answer_at_once(request, MODEL, reservation, run, in_stream=in_stream)
    except OffloadError as error:
        return messages.write_stream_error(request.id, str(error)) if in_stream else b""


def _run_by_workers(
    request: ReceivedRequest, memory: MemoryBudget, draw: Draw, in_stream: bool
) -> bytes:
    state = InferenceRequest(MODEL, memory.reserve(lambda: None), in_stream=in_stream)
    events: list[Event] = state.begin(request, 0.0)
    replies: list[bytes] = []
    while events:
        runs = [event for event in events if isinstance(event, RunSegment)]
        replies += [event.data for event in events if isinstance(event, Reply)]
        events = []
        for run in runs:
            if draw.byte() > 240:
                events += state.failed(run, OffloadError("it cannot be computed"))
            else:
                events += state.finished(run, _computed(run.segment.outputs, draw), 0.0, 1.0)
    events = state.close()
    replies += [event.data for event in events if isinstance(event, Reply)]
    assert len(replies) == 1
    assert state.closed
    return replies[0]


def _computed(names: Sequence[str], draw: Draw) -> dict[str, Any]:
    count = draw.number() % 100
    arrays = {"x": np.zeros(count, np.float16), "y": np.array(["word"] * count, object)}
    return {name: arrays[name] for name in names}


def seeds() -> list[bytes]:
    """Valid requests and answers, as bytes and as choices."""
    request = kserve.ModelInferRequest(model_name="m")
    for name, array in (("a", np.ones((2, 3), np.float32)), ("b", np.ones(2, np.int8))):
        request.inputs.add(name=name, datatype=DATATYPES[_TYPES[name]], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name, raw in (("c", bytes(4)), ("e", b"\1\0\0\0a"), ("f", bytes(8))):
        shape = {"c": [2], "e": [1], "f": []}[name]
        request.inputs.add(name=name, datatype=DATATYPES[_TYPES[name]], shape=shape)
        request.raw_input_contents.append(raw)
    answer = kserve.ModelInferResponse(model_name="m", raw_output_contents=[bytes(4), b""])
    answer.outputs.add(name="x", datatype="FP16", shape=[2])
    answer.outputs.add(name="y", datatype="BYTES", shape=[0])
    return [b"\0" + request.SerializeToString(), b"\1" + answer.SerializeToString()]
