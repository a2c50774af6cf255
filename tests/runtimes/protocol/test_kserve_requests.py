"""Tensors of KServe v2 cross unchanged, raw or typed; whatever else comes gets one sentence."""

import struct
from typing import Any

import numpy as np
import offload_runtimes.protocol.kserve_pb2 as kserve
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from offload.bundle.bundle import ModelValue
from offload.errors import InputError
from offload_runtimes.protocol.kserve_messages import ModelSignature
from offload_runtimes.protocol.kserve_requests import (
    ReceivedRequest,
    RequestHeader,
    RequestParts,
    split_request,
)
from offload_runtimes.protocol.tensor_specs import input_specs

from tests.runtimes.kserve_client import arrays, infer_request

TYPES = {
    "bool": ("tensor(bool)", "BOOL", "bool_contents"),
    "int8": ("tensor(int8)", "INT8", "int_contents"),
    "int16": ("tensor(int16)", "INT16", "int_contents"),
    "int32": ("tensor(int32)", "INT32", "int_contents"),
    "int64": ("tensor(int64)", "INT64", "int64_contents"),
    "uint8": ("tensor(uint8)", "UINT8", "uint_contents"),
    "uint16": ("tensor(uint16)", "UINT16", "uint_contents"),
    "uint32": ("tensor(uint32)", "UINT32", "uint_contents"),
    "uint64": ("tensor(uint64)", "UINT64", "uint64_contents"),
    "float16": ("tensor(float16)", "FP16", ""),
    "float32": ("tensor(float)", "FP32", "fp32_contents"),
    "float64": ("tensor(double)", "FP64", "fp64_contents"),
}
LIMIT_BYTES = 1 << 16


def model(*inputs: ModelValue, defaults: tuple[ModelValue, ...] = ()) -> ModelSignature:
    outputs = tuple(ModelValue(v.name.upper(), v.type, v.shape) for v in inputs)
    limits = input_specs((*inputs, *defaults), LIMIT_BYTES)
    return ModelSignature("m", "1", inputs, defaults, outputs, limits)


def came(message: kserve.ModelInferRequest) -> ReceivedRequest:
    raw = message.raw_input_contents
    return ReceivedRequest(message.ByteSize(), message.id, raw, message)


def read_inputs(message: kserve.ModelInferRequest, of: ModelSignature) -> dict[str, Any]:
    request = came(message)
    return request.checked(of).read(request)


def answered(
    message: kserve.ModelInferRequest, of: ModelSignature, *outputs: Any, in_stream: bool = False
) -> bytes:
    return RequestHeader(message, of).write_answer(message.id, outputs, in_stream=in_stream)


@given(
    array=st.sampled_from(list(TYPES)).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
    )
)
def test_numbers_cross_unchanged(array: np.ndarray) -> None:
    kind, datatype, field = TYPES[array.dtype.name]
    of = model(ModelValue("x", kind, None))
    raw = infer_request("m", {"x": array})
    assert raw.inputs[0].datatype == datatype
    requests = [raw]
    if field:
        typed = kserve.ModelInferRequest()
        tensor = typed.inputs.add(name="x", datatype=datatype, shape=array.shape)
        getattr(tensor.contents, field).extend(array.ravel().tolist())
        requests.append(typed)
    for request in requests:
        back = read_inputs(request, of)["x"]
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back, array)
        response = kserve.ModelInferResponse.FromString(answered(request, of, back))
        (given,) = arrays(response).values()
        np.testing.assert_array_equal(given, array)
        in_stream = answered(request, of, back, in_stream=True)
        assert kserve.ModelStreamInferResponse.FromString(in_stream).infer_response == response


@given(words=st.lists(st.text(max_size=8), max_size=6))
def test_text_crosses_unchanged(words: list[str]) -> None:
    of = model(ModelValue("x", "tensor(string)", ("n",)))
    encoded = [word.encode() for word in words]
    raw = b"".join(struct.pack("<I", len(word)) + word for word in encoded)
    request = kserve.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="x", datatype="BYTES", shape=[len(words)])
    typed = kserve.ModelInferRequest()
    tensor = typed.inputs.add(name="x", datatype="BYTES", shape=[len(words)])
    tensor.contents.bytes_contents.extend(encoded)
    for each in (request, typed):
        back = read_inputs(each, of)["x"]
        assert back.tolist() == words
    answer = answered(request, of, back)
    assert kserve.ModelInferResponse.FromString(answer).raw_output_contents == [raw]


def test_bfloat16_crosses_as_bits() -> None:
    of = model(ModelValue("x", "tensor(bfloat16)", (2,)))
    request = kserve.ModelInferRequest(raw_input_contents=[b"\x80\x3f\x00\xc0"])
    request.inputs.add(name="x", datatype="BF16", shape=[2])
    back = read_inputs(request, of)["x"]
    assert back.dtype == np.uint16
    answer = answered(request, of, back)
    response = kserve.ModelInferResponse.FromString(answer)
    assert response.outputs[0].datatype == "BF16"
    assert response.raw_output_contents == [b"\x80\x3f\x00\xc0"]


def test_an_answer_repeats_what_the_client_gave() -> None:
    one = np.ones(1, np.float32)
    of = model(ModelValue("x", "tensor(float)", (1,)))
    request = infer_request("m", {"x": one}, request_id="seven")
    answer = kserve.ModelInferResponse.FromString(answered(request, of, one))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "seven")
    assert not answer.parameters
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["priority"].uint64_param = 3
    answer = kserve.ModelInferResponse.FromString(answered(request, of, one))
    assert answer.parameters["triton_final_response"].bool_param


X = ModelValue("x", "tensor(float)", ("n", 2))
TAKES = model(X, defaults=(ModelValue("d", "tensor(int8)", ("n",)),))


def request(raw: bytes | None = bytes(16), **changes: Any) -> kserve.ModelInferRequest:
    right: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": (2, 2)}
    made = kserve.ModelInferRequest(raw_input_contents=[] if raw is None else [raw])
    made.inputs.add(**{**right, **changes})
    return made


def typed(**contents: list[Any]) -> kserve.ModelInferRequest:
    return request(None, contents=kserve.InferTensorContents(**contents))


def parameter(where: str, name: str) -> kserve.ModelInferRequest:
    made = request()
    made.outputs.add(name="X")
    holder: Any = {"request": made, "input": made.inputs[0], "output": made.outputs[0]}[where]
    holder.parameters[name].int64_param = 1
    return made


def both() -> kserve.ModelInferRequest:
    made = request()
    made.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    return made


def twice() -> kserve.ModelInferRequest:
    made = request()
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(bytes(16))
    return made


def default(values: list[int]) -> kserve.ModelInferRequest:
    made = typed(fp32_contents=[1.0] * 4)
    tensor = made.inputs.add(name="d", datatype="INT8", shape=[len(values)])
    tensor.contents.int_contents.extend(values)
    return made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (request(name="y"), r"model 'm' has no input 'y': it takes \['x', 'd'\]"),
        (request(name="y" * 10**6), "has no input"),
        (request(datatype="FP64"), r"'x' must be FP32\[nx2\], not FP64\[2x2\]"),
        (request(datatype="float32"), "not float32"),
        (request(shape=(2, 3)), r"must be FP32\[nx2\], not FP32\[2x3\]"),
        (request(shape=(4,)), r"not FP32\[4\]"),
        (request(shape=(-2, 2)), r"not FP32\[-2x2\]"),
        (request(shape=(2**40, 2)), "takes 8796 GB, allowed are"),
        (request(shape=(2**62, 2)), "allowed are"),
        (request(bytes(15)), r"came with 15 bytes, FP32\[2x2\] takes 16"),
        (request(b""), "came with 0 bytes"),
        (request(None), "came with 0 elements"),
        (typed(fp32_contents=[1.0] * 5), "came with 5 elements"),
        (typed(fp64_contents=[1.0] * 4), "give fp32_contents, not fp64_contents"),
        (typed(fp32_contents=[1.0] * 4, int_contents=[1]), "not int_contents"),
        (kserve.ModelInferRequest(), "'x' of 'm' is missing"),
        (both(), "in raw_input_contents or in contents, not in both"),
        (twice(), "'x' came twice"),
        (kserve.ModelInferRequest(raw_input_contents=[b""]), "0 inputs came with 1 raw"),
        (default([128]), "holds a number that INT8 cannot"),
        (parameter("input", "shared_memory_region"), "'shared_memory_region' is not supported"),
        (parameter("output", "classification"), "'classification' is not supported"),
        (parameter("request", "sequence_id"), "'sequence_id' is not supported"),
    ],
)
def test_a_wrong_request_gets_one_sentence(wrong: kserve.ModelInferRequest, said: str) -> None:
    read_inputs(request(), TAKES)
    read_inputs(default([1, 2]), TAKES)
    with pytest.raises(InputError, match=said) as caught:
        read_inputs(wrong, TAKES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("raw", "shape", "said"),
    [
        (b"\1\0\0\0a\2\0\0", [2], "end within an element"),
        (b"\x09\0\0\0a", [1], "end within an element"),
        (b"\1\0\0\0\xff", [1], "not UTF-8"),
        (b"\1\0\0\0a", [2], "came with 1 elements"),
        (b"", [2**40], "allowed are"),
    ],
)
def test_wrong_text_gets_one_sentence(raw: bytes, shape: list[int], said: str) -> None:
    of = model(ModelValue("x", "tensor(string)", ("n",)))
    with pytest.raises(InputError, match=said):
        read_inputs(request(raw, datatype="BYTES", shape=shape), of)


def test_empty_contents_beside_raw_ones_are_ignored() -> None:
    made = request()
    made.inputs[0].contents.SetInParent()
    assert read_inputs(made, TAKES)["x"].shape == (2, 2)


def test_half_precision_must_be_raw() -> None:
    of = model(ModelValue("x", "tensor(float16)", (1,)))
    wrong = request(None, datatype="FP16", shape=[1])
    wrong.inputs[0].contents.fp32_contents.append(1.0)
    with pytest.raises(InputError, match="FP16, which must be in raw contents"):
        read_inputs(wrong, of)


def test_outputs_are_given_as_requested() -> None:
    of = model(X, ModelValue("y", "tensor(float)", (1,)))

    def wanted(message: kserve.ModelInferRequest) -> tuple[ModelValue, ...]:
        return RequestHeader(message, of).outputs

    wants = infer_request("m", {"x": np.ones((1, 2), np.float32), "y": np.ones(1, np.float32)})
    assert [v.name for v in wanted(wants)] == ["X", "Y"]
    wants.outputs.add(name="Y")
    assert [v.name for v in wanted(wants)] == ["Y"]
    wants.outputs.add(name="Y")
    with pytest.raises(InputError, match="requested twice"):
        wanted(wants)
    wants.outputs[0].name = "Z"
    with pytest.raises(InputError, match=r"no output 'Z': it gives \['X', 'Y'\]"):
        wanted(wants)


def test_types_without_a_datatype_are_named() -> None:
    assert not model(X).why_not()
    assert "'m' is a map" in model(ModelValue("m", "map(int64,tensor(float))", None)).why_not()
    assert "float8" in model(ModelValue("x", "tensor(float8e5m2)", None)).why_not()


@st.composite
def requests(draw: st.DrawFn) -> kserve.ModelInferRequest:
    rows = draw(st.integers(0, 3))
    message = infer_request(
        "m",
        {"x": np.full((rows, 2), draw(st.integers(0, 9)), np.float32)},
        request_id=draw(st.text(max_size=200)),
    )
    if draw(st.booleans()):
        message.parameters["priority"].int64_param = 1
    if draw(st.booleans()):
        message.outputs.add(name="X")
    return message


@given(requests(), requests())
def test_a_header_that_was_checked_serves_the_next_request(
    first: kserve.ModelInferRequest, second: kserve.ModelInferRequest
) -> None:
    """Against protobuf: the same header gives the same inputs and the same answer."""
    several = [split_request(message.SerializeToString()) for message in (first, second)]
    before, now = several
    assert before is not None
    assert now is not None
    for message, parts in zip((first, second), several, strict=True):
        assert isinstance(parts, RequestParts)
        assert (parts.id, [bytes(raw) for raw in parts.raw]) == (
            message.id,
            list(message.raw_input_contents),
        )
        rest = kserve.ModelInferRequest.FromString(parts.header)
        message = kserve.ModelInferRequest.FromString(message.SerializeToString())
        message.ClearField("id")
        message.ClearField("raw_input_contents")
        assert rest == message
    if before.header != now.header:
        return
    header = RequestHeader(first, TAKES)
    request = ReceivedRequest(0, now.id, now.raw, None, header)
    inputs = request.checked(TAKES).read(request)
    np.testing.assert_array_equal(inputs["x"], read_inputs(second, TAKES)["x"])
    answer = header.write_answer(now.id, [inputs["x"]], in_stream=False)
    parsed = kserve.ModelInferResponse.FromString(answer)
    assert parsed == kserve.ModelInferResponse.FromString(answered(second, TAKES, inputs["x"]))
    assert parsed.id == second.id


@given(st.binary(max_size=60))
def test_damaged_requests_are_left_to_protobuf(data: bytes) -> None:
    parts = split_request(data)
    if parts is None:
        return
    try:
        message = kserve.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            kserve.ModelInferRequest.FromString(parts.header)
        return
    assert message.id == parts.id
    assert list(message.raw_input_contents) == [bytes(raw) for raw in parts.raw]


def test_requests_with_many_fields_or_a_long_header_are_not_split() -> None:
    """Python would need long to read them."""
    for count, is_split in ((256, True), (257, False)):
        empty = kserve.ModelInferRequest(raw_input_contents=[b""] * count)
        assert (split_request(empty.SerializeToString()) is not None) == is_split
    for size, is_split in ((4093, True), (4094, False)):
        named = kserve.ModelInferRequest(model_name="m" * size)
        assert (split_request(named.SerializeToString()) is not None) == is_split


@pytest.mark.parametrize(
    "data", [b"\x1a", b"\x1a\x05ab", b"\x1a\x02\xff\xfe", b"\x08\x01", b"\x1a" + b"\xff" * 11]
)
def test_a_request_that_is_no_plain_sequence_of_fields_is_not_split(data: bytes) -> None:
    assert split_request(data) is None


def test_an_answer_follows_the_shapes_of_its_outputs() -> None:
    of = model(X)
    header = RequestHeader(infer_request("m", {"x": np.ones((1, 2), np.float32)}), of)
    for rows in (1, 3, 3, 0, 2000, 1):
        array = np.arange(2.0 * rows, dtype=np.float32).reshape(rows, 2)
        for each in (array, np.asfortranarray(array), array.astype(">f4")):
            answer = header.write_answer("", [each], in_stream=False)
            (given,) = arrays(kserve.ModelInferResponse.FromString(answer)).values()
            np.testing.assert_array_equal(given, array)
