"""What is written is plain protobuf; what any protobuf library writes is read, in any order."""

import itertools

import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from offload.bundle.bundle import ModelValue
from offload_runtimes.protocol import framing
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.messages import OldPeerError
from offload_runtimes.protocol.tensor_specs import TensorSpec, TensorSpecs

from tests.runtimes.tensor_messages import encode_tensor

HEADS = st.builds(
    lambda frame, layout, plan: pb.Message(tensor=pb.Tensor(frame=frame, layout=layout, plan=plan)),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200),
    st.integers(0, 2**32 - 1),
)


@given(head=HEADS, data=st.one_of(st.binary(max_size=300), st.just(bytes(70_000))))
def test_what_is_written_is_a_message_of_the_proto(head: pb.Message, data: bytes) -> None:
    written = framing.join(head, data)
    plain = pb.Message.FromString(written)
    assert plain.tensor == head.tensor
    assert plain.data == data
    assert not any(plain.pad)
    assert written.index(data, len(written) - len(data)) % 16 == 0


@given(head=HEADS, data=st.binary(max_size=300), pad=st.binary(max_size=20))
def test_what_protobuf_writes_is_read(head: pb.Message, data: bytes, pad: bytes) -> None:
    plain = pb.Message(tensor=head.tensor, data=data, pad=pad)
    message, tensor = framing.split(plain.SerializeToString())
    assert message.tensor == head.tensor
    assert bytes(tensor) == data


@given(head=HEADS, data=st.binary(max_size=300), order=st.permutations(range(4)))
def test_fields_may_come_in_any_order(head: pb.Message, data: bytes, order: list[int]) -> None:
    fields = (
        head.SerializeToString(),
        pb.Message(pad=bytes(5)).SerializeToString(),
        pb.Message(data=data).SerializeToString(),
        b"\xa0\x06\x05",  # field 100, which this version does not know
    )
    message, tensor = framing.split(b"".join(fields[index] for index in order))
    assert message.tensor == head.tensor
    assert bytes(tensor) == data


@example(b"\x15\x80\x80\x80\x80")  # a number, not a length
@given(st.binary(max_size=200))
def test_random_bytes_are_read_as_protobuf_reads_them(data: bytes) -> None:
    try:
        plain = pb.Message.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            framing.split(data)
        return
    message, tensor = framing.split(data)
    assert bytes(tensor) == plain.data
    assert message.WhichOneof("body") == plain.WhichOneof("body")


def test_a_field_longer_than_its_message_is_refused() -> None:
    written = framing.join(pb.Message(tensor=pb.Tensor(frame=1)), bytes(1000))
    for cut in range(1, len(written)):
        try:
            _, tensor = framing.split(written[:cut])
        except DecodeError:
            continue
        assert not tensor  # cut between two fields
    with pytest.raises(DecodeError):
        framing.split(b"\x7a" + b"\xff" * 10)


def test_an_unaligned_tensor_is_copied_where_it_must_be_aligned() -> None:
    array = np.arange(64, dtype=np.float64)
    written = encode_tensor(1, "t", array, "raw")
    for extra in range(1, 9):  # a field before the data moves it
        message, data = wire.parse(pb.Message(pad=bytes(extra)).SerializeToString() + written)
        _, back = wire.decode_tensor(message.tensor, data, _specs(array))
        assert back.flags.aligned
        np.testing.assert_array_equal(back, array)


def _specs(array: np.ndarray) -> TensorSpecs:
    value = ModelValue("t", "tensor(double)", None)
    return TensorSpecs({"t": TensorSpec(value, "raw", array.nbytes)})


def old_framing(message: bytes) -> bytes:
    """As protocol 4 wrote it: the length, the message, zeros up to a multiple of 16."""
    framed = len(message).to_bytes(4, "little") + message
    return framed + bytes(-len(framed) % 16)


@pytest.mark.parametrize(
    "body",
    [
        {"hello": pb.Hello(protocol=4, bundle="d" * 64)},
        *({"failure": pb.Failure(sentence="x" * size)} for size in (0, 31, 120, 121, 200, 900)),
        {"ping": pb.Ping(number=1, sent=2)},
        {"goodbye": pb.Goodbye()},
    ],
)
def test_an_old_peer_gets_one_sentence(body: dict[str, object]) -> None:
    """In its own framing, so that it can read it."""
    with pytest.raises(OldPeerError, match="protocol 4 or older") as caught:
        wire.parse(old_framing(wire.message(**body)))
    reply = wire.encode_failure(caught.value)
    length = int.from_bytes(reply[:4], "little")
    assert len(reply) % 16 == 0
    assert "install the same" in pb.Message.FromString(reply[4 : 4 + length]).failure.sentence


def test_messages_of_this_protocol_are_not_taken_for_old_ones() -> None:
    for size, frame in itertools.product((0, 1, 100), (0, 1, 2**40)):
        encoded = encode_tensor(frame, "t", np.zeros(size), "raw")
        assert not framing.is_old(encoded)
    assert not framing.is_old(wire.message(hello=pb.Hello(protocol=5, bundle="d" * 64)))
