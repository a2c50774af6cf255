"""Text, sequences and maps cross as they are; other bytes are refused."""

from typing import Any

import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from offload.bundle.bundle import ModelValue
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol import structured_values as structured
from offload_runtimes.protocol.messages import ProtocolError
from offload_runtimes.protocol.tensor_specs import TensorSpec, TensorSpecs

from tests.runtimes.tensor_messages import encode_tensor

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
numbers = hnp.arrays(
    st.sampled_from(["f4", "i8", "u1", "?", ">i2"]), hnp.array_shapes(min_dims=0, min_side=0)
)
texts = hnp.arrays(object, hnp.array_shapes(min_dims=0, min_side=0), elements=words)
keys = st.one_of(
    st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)),
    st.dictionaries(words, st.integers(-(2**63), 2**63 - 1)),
    st.dictionaries(words, words),
)
values = st.one_of(numbers, texts, keys)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        right = one.shape == other.shape and one.dtype.kind == other.dtype.kind
        return right and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and list(map(type, one.values())) == list(map(type, other.values()))


@given(value=st.one_of(values, st.lists(values, max_size=3)))
def test_round_trip(value: Any) -> None:
    assert same(value, structured.decode(structured.encode(value)))


@given(data=st.binary(max_size=60))
def test_random_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        structured.decode(data)
    except ValueError as error:
        assert str(error)  # noqa: PT017  refused is as right as read


def test_other_python_values_are_refused() -> None:
    with pytest.raises(ValueError, match="a NoneType is not a tensor"):
        structured.encode([None])


def column(*values: int) -> pb.Value:
    data = np.array(values, np.int64).tobytes()
    return pb.Value(numbers=pb.Numbers(dtype="<i8", shape=[len(values)], data=data))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (pb.Value(), "empty"),
        (pb.Value(numbers=pb.Numbers(dtype="|O", shape=[1], data=bytes(8))), "not supported"),
        (pb.Value(numbers=pb.Numbers(dtype="<f4", shape=[3], data=bytes(8))), "reshape"),
        (pb.Value(text=pb.Text(shape=[3], elements=["a"])), "reshape"),
        (pb.Value(text=pb.Text(shape=[2**63, 0], elements=[])), "too large"),
        (pb.Value(map=pb.Map(keys=column(1, 2), values=column(1))), "shorter"),
        (pb.Value(map=pb.Map(keys=column(1), values=pb.Value(map=pb.Map()))), "map of maps"),
    ],
)
def test_damaged_values_are_refused(message: pb.Value, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        structured.decode(message.SerializeToString())


TEXT = TensorSpecs({"s": TensorSpec(ModelValue("s", "tensor(string)", ("n",)), "raw", 100)})


def sent(value: Any) -> tuple[pb.Tensor, memoryview]:
    message, data = wire.parse(encode_tensor(1, "s", value, "raw"))
    return message.tensor, data


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(2, np.float32), "must be tensor"),
        (np.array([["a"]], object), r"must be text\[n\]"),
        ([np.array(["a"], object)], "must be text"),
        ({"a": 1}, "must be text"),
        (np.array(["a" * 200], object), "allowed are 100"),
    ],
)
def test_values_outside_the_contract_are_refused(value: Any, said: str) -> None:
    header, read = wire.decode_tensor(*sent(np.array(["a", "\u00e9"], object)), TEXT)
    assert (header.name, read.tolist()) == ("s", ["a", "\u00e9"])
    with pytest.raises(ProtocolError, match=said) as caught:
        wire.decode_tensor(*sent(value), TEXT)
    assert "\n" not in str(caught.value)


def test_text_is_refused_where_numbers_are_declared() -> None:
    spec = TensorSpec(ModelValue("s", "tensor(float)", None), "raw", 100)
    with pytest.raises(ProtocolError, match="must be float32"):
        wire.decode_tensor(*sent(np.array(["a"], object)), TensorSpecs({"s": spec}))


def test_an_output_of_unknown_type_may_be_anything() -> None:
    specs = TensorSpecs({"s": TensorSpec(ModelValue("s", "unknown", None), "raw", 100)})
    for value in (np.zeros((2, 1), np.float32), np.array(["a"], object), [{1: 0.5}]):
        assert same(value, wire.decode_tensor(*sent(value), specs)[1])
