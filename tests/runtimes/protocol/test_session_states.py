"""Both state machines under random messages: they never break, leak or answer wrongly."""

import numpy as np
import offload_runtimes.protocol.offload_pb2 as pb
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from offload.bundle.bundle import ModelValue
from offload.errors import BundleError, InputError
from offload.planning.plan import Segment, Side
from offload_runtimes.protocol import messages as wire
from offload_runtimes.protocol.client_state import (
    DeviceSession,
    DownloadReceived,
    FrameFailed,
)
from offload_runtimes.protocol.memory_budget import MemoryBudget
from offload_runtimes.protocol.server_state import (
    Close,
    Event,
    FrameOver,
    PlanSwitched,
    Reply,
    RunSegment,
    ServerSession,
    SessionLimits,
)
from offload_runtimes.protocol.tensor_specs import Contract, TensorSpec, TensorSpecs

from tests.runtimes.tensor_messages import encode_tensor

ROOM = SessionLimits(max_frames=3, max_bytes=10_000)


def specs(names: str) -> TensorSpecs:
    return TensorSpecs(
        {n: TensorSpec(ModelValue(n, "tensor(int64)", ("n",)), "raw", 800) for n in names}
    )


def segment(name: str, inputs: str, outputs: str) -> Segment:
    return Segment(name, Side.SERVER, (), (), tuple(inputs), tuple(outputs))


# a -> b, c -> d, and both joined: e. Downloads are b and e, uploads a and c.
SEGMENTS = (segment("ab", "a", "b"), segment("cd", "c", "d"), segment("bde", "bd", "e"))
CONTRACT = Contract("digest", SEGMENTS, specs("ac"), specs("be"))
# Another plan of the same bundle: one segment, one download.
OTHER = Contract("digest", (segment("ace", "ac", "e"),), specs("ac"), specs("e"))
AGREED = (CONTRACT, OTHER)
WORK = {
    "ab": lambda a: {"b": a + 1},
    "cd": lambda c: {"d": c * 2},
    "bde": lambda b, d: {"e": b + d},
    "ace": lambda a, c: {"e": a + 1 + c * 2},
}


def compute(run: RunSegment) -> dict[str, np.ndarray]:
    return WORK[run.segment.id](**run.feeds)  # type: ignore[no-any-return, operator]


def values(frame: int) -> dict[str, np.ndarray]:
    return {"a": np.arange(frame % 5), "c": np.arange(frame % 5) + frame}


class ServerMachine(RuleBasedStateMachine):
    """A server session against a model of what a right device has asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryBudget(150)  # two frames of the longest tensors do not fit
        self.others = self.memory.reserve(lambda: None)
        reservation = self.memory.reserve(lambda: None)
        self.session = ServerSession({"digest": AGREED}, ROOM, reservation)
        self.running: list[RunSegment] = []
        self.answers: dict[int, dict[str, np.ndarray]] = {}
        self.sent: dict[int, set[str]] = {}
        self.plans: dict[int, int] = {}
        self.over: list[int] = []
        self.number = 0
        self.count = 0  # messages to the session
        self.replies = 0
        self.closes = 0

    def take(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case RunSegment():
                    self.running.append(event)
                case FrameOver(frame, _):
                    self.over.append(frame)
                case Close():
                    self.closes += 1
                case Reply(data):
                    self.reply(*wire.parse(data))

    def reply(self, message: pb.Message, data: memoryview) -> None:
        self.replies += 1
        if message.WhichOneof("body") == "pong":
            assert message.pong.sent == self.replies
        if message.WhichOneof("body") == "tensor":
            plan = self.plans[message.tensor.frame]
            header, array = wire.decode_tensor(message.tensor, data, AGREED[plan].downloads)
            answers = self.answers.setdefault(message.tensor.frame, {})
            assert header.name not in answers
            answers[header.name] = array

    def send(self, message: bytes) -> None:
        self.count += 1
        self.take(self.session.receive(message, 0.0))

    @initialize()
    def hello(self) -> None:
        self.send(DeviceSession(AGREED, "here").hello())
        assert self.session.bundle == "digest"

    @precondition(lambda self: len(self.open()) < ROOM.max_frames)
    @rule(name=st.sampled_from("ac"), plan=st.integers(0, 1))
    def begin(self, name: str, plan: int) -> None:
        self.number += 1
        self.sent[self.number], self.plans[self.number] = set(), plan
        self.upload(self.number, name)

    @precondition(lambda self: self.unsent())
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.upload(*data.draw(st.sampled_from(self.unsent())))

    def upload(self, frame: int, name: str) -> None:
        self.sent[frame].add(name)
        array = values(frame)[name]
        self.send(encode_tensor(frame, name, array, "raw", plan=self.plans[frame]))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        run = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.take(self.session.finished(run, compute(run), 0.0, 1.0))

    @precondition(lambda self: self.running)
    @rule()
    def fail(self) -> None:
        self.take(self.session.failed(self.running.pop(0), InputError("it cannot be computed")))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        frame = data.draw(st.sampled_from(sorted(self.sent)))
        self.sent[frame] = {"a", "c"}
        self.send(wire.message(cancel=pb.Cancel(frame=frame)))

    @rule(number=st.integers(0, 2**64 - 1))
    def ping(self, number: int) -> None:
        self.send(DeviceSession(AGREED, "here").ping(number, self.count + 1))

    @rule(
        wrong=st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda frame, name, count, plan: encode_tensor(
                    frame, name, np.zeros(count, np.int64), "raw", plan=plan
                ),
                st.integers(0, 2**40),
                st.sampled_from(["b", "x", ""]),
                st.integers(0, 200),
                st.integers(0, 2**32 - 1),
            ),
            st.just(DeviceSession(AGREED, "here").hello()),
            st.just(DeviceSession(AGREED, "here").ping(1, sent=0)),
        )
    )
    def misbehave(self, wrong: bytes) -> None:
        self.send(wrong)

    @rule(size=st.integers(0, 150))
    def others_hold(self, size: int) -> None:
        self.others.hold(size)

    def open(self) -> list[int]:
        return [frame for frame in self.sent if frame not in self.over]

    def unsent(self) -> list[tuple[int, str]]:
        frames = [frame for frame in self.open() if frame <= self.number]
        return [(f, name) for f in frames for name in "ac" if name not in self.sent[f]]

    @invariant()
    def nothing_leaks(self) -> None:
        assert self.session.frames_in_flight <= ROOM.max_frames
        assert self.closes <= 1
        assert self.session.closed == (self.closes == 1)
        if self.session.closed:
            assert self.session.frames_in_flight == 0
        assert len(self.over) == len(set(self.over))

    @invariant()
    def memory_is_what_is_held(self) -> None:
        """Of frames in flight, and of those that are over while something still runs for them."""
        feeds = {id(array): array for run in self.running for array in run.feeds.values()}
        running = sum(a.nbytes for a in feeds.values() if a.base is not None)
        frames = self.session._all_frames()
        held = sum(frame.uploaded_bytes for frame in frames)
        assert held == sum(a.nbytes for f in frames for n, a in f.tensors.items() if n in "ac")
        assert self.memory.held_bytes == held + self.others.held_bytes <= self.memory.limit_bytes
        assert held == 0 if self.session.closed else held >= running

    @invariant()
    def answers_are_right(self) -> None:
        for frame, answers in self.answers.items():
            a, c = values(frame)["a"], values(frame)["c"]
            right = {"b": a + 1, "e": a + 1 + c * 2}
            for name, array in answers.items():
                np.testing.assert_array_equal(array, right[name])

    def teardown(self) -> None:
        """Whatever a right device asked for is answered in the end."""
        if self.session.closed:
            return
        for frame, name in self.unsent():
            self.upload(frame, name)
        while self.running:
            run = self.running.pop()
            self.take(self.session.finished(run, compute(run), 0.0, 1.0))
        assert self.session._all_frames() == []
        assert set(self.over) == set(self.sent)


TestServerMachine = ServerMachine.TestCase
TestServerMachine.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def opened() -> DeviceSession:
    session = DeviceSession(AGREED, "here")
    welcome = pb.Welcome(protocol=wire.PROTOCOL, max_frames=3, max_message_bytes=2**20)
    assert session.receive(wire.message(welcome=welcome)) == welcome
    return session


def answer(frame: int, name: str) -> bytes:
    return encode_tensor(frame, name, np.zeros(2, np.int64), "raw")


def test_device_accepts_each_download_once() -> None:
    session = opened()
    frame = session.open_frame()
    event = session.receive(answer(frame, "b"))
    assert isinstance(event, DownloadReceived)
    with pytest.raises(wire.ProtocolError, match="'b' twice"):
        session.receive(answer(frame, "b"))
    assert isinstance(session.receive(answer(frame, "e")), DownloadReceived)
    assert session.receive(answer(frame, "e")) is None
    assert session.cancel(frame) is None


def test_device_ignores_downloads_of_cancelled_frames() -> None:
    session = opened()
    frame = session.open_frame()
    assert session.cancel(frame) is not None
    assert session.receive(answer(frame, "e")) is None
    assert session.receive(wire.encode_failure(InputError("no"), frame)) is None
    with pytest.raises(wire.ProtocolError, match="never requested"):
        session.receive(answer(frame + 1, "e"))


def test_device_maps_failures() -> None:
    session = opened()
    frame = session.open_frame()
    one = session.receive(wire.encode_failure(InputError("bad frame"), frame))
    assert isinstance(one, FrameFailed)
    assert one.frame == frame
    with pytest.raises(BundleError, match="gone"):
        session.receive(wire.encode_failure(BundleError("gone")))
    goodbye = pb.Goodbye()
    assert session.receive(wire.message(goodbye=goodbye)) == goodbye


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        b"",
        answer(1, "b"),
        wire.message(welcome=pb.Welcome(protocol=99, max_frames=1)),
        wire.message(welcome=pb.Welcome(protocol=wire.PROTOCOL)),
        wire.message(hello=pb.Hello()),
    ],
)
def test_device_refuses_a_wrong_server(data: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        DeviceSession(AGREED, "here").receive(data)


def greeted() -> ServerSession:
    session = ServerSession({"digest": AGREED}, ROOM)
    session.receive(DeviceSession(AGREED, "here").hello(), 0.0)
    return session


def refusal(events: list[Event]) -> str:
    (close,) = [event for event in events if isinstance(event, Close)]
    return str(close.error)


def test_a_frame_cannot_change_its_plan() -> None:
    session = greeted()
    a, c = np.arange(2), np.arange(2) + 5
    assert session.receive(encode_tensor(1, "a", a, "raw", plan=1), 0.0) == []
    (run,) = session.receive(encode_tensor(1, "c", c, "raw", plan=1), 0.0)
    assert isinstance(run, RunSegment)
    assert run.segment.id == "ace"
    switched, other = session.receive(encode_tensor(2, "a", a, "raw", plan=0), 0.0)
    assert switched == PlanSwitched(1, 0)
    assert isinstance(other, RunSegment)
    assert other.segment.id == "ab"
    events = session.receive(encode_tensor(2, "c", c, "raw", plan=1), 0.0)
    assert "frame 2 follows plan 0, not 1" in refusal(events)


def test_memory_of_a_cancelled_frame_is_reserved_until_its_run_ends() -> None:
    """Else a device could fill the server with frames it cancels while they wait for a worker."""
    memory = MemoryBudget(100)
    session = ServerSession({"digest": AGREED}, ROOM, memory.reserve(lambda: None))
    session.receive(DeviceSession(AGREED, "here").hello(), 0.0)
    (run,) = session.receive(encode_tensor(1, "a", np.arange(8), "raw"), 0.0)
    assert isinstance(run, RunSegment)
    cancel = wire.message(cancel=pb.Cancel(frame=1))
    assert session.receive(cancel, 0.0) == [FrameOver(1, "cancelled")]
    assert (session.frames_in_flight, memory.held_bytes) == (0, 64)
    failed, reply = session.receive(encode_tensor(2, "a", np.arange(8), "raw"), 0.0)
    assert failed == FrameOver(2, "failed")
    assert isinstance(reply, Reply)
    assert "in use on the server (--max-memory)" in wire.parse(reply.data)[0].failure.sentence
    assert session.failed(run, InputError("it was stopped")) == []
    assert memory.held_bytes == 0
    assert session.receive(encode_tensor(2, "c", np.arange(8), "raw"), 0.0) == []
    (again,) = session.receive(encode_tensor(3, "a", np.arange(8), "raw"), 0.0)
    assert isinstance(again, RunSegment)


def test_an_answer_too_large_to_be_sent_fails_its_frame() -> None:
    session = greeted()
    (run,) = session.receive(encode_tensor(1, "a", np.arange(2), "raw"), 0.0)
    assert isinstance(run, RunSegment)
    over, reply = session.finished(run, {"b": np.zeros(101, np.int64)}, 0.0, 1.0)
    assert over == FrameOver(1, "failed")
    assert isinstance(reply, Reply)
    failure = wire.parse(reply.data)[0].failure
    assert failure.kind == pb.Failure.INPUT
    assert "'b' takes 808 B, the server sends 800 B at most" in failure.sentence


def test_a_plan_that_the_bundle_lacks_is_refused() -> None:
    events = greeted().receive(encode_tensor(1, "a", np.arange(2), "raw", plan=2), 0.0)
    assert "no plan 2: it has 2" in refusal(events)


def test_a_damaged_plan_number_is_detected() -> None:
    right = encode_tensor(1, "a", np.arange(2), "raw", plan=1)
    message, data = wire.parse(right)
    message.tensor.plan = 0
    damaged = wire.message(tensor=message.tensor, data=bytes(data))
    events = greeted().receive(damaged, 0.0)
    assert "damaged on its way" in refusal(events)


def test_pongs_return_the_data_of_pings_up_to_a_limit() -> None:
    session, device = greeted(), DeviceSession(AGREED, "here")
    (reply,) = session.receive(device.ping(7, 2, b"x" * wire.MAX_PING_BYTES), 3.0)
    assert isinstance(reply, Reply)
    pong = wire.parse(reply.data)[0].pong
    assert (pong.number, pong.server_s, len(pong.data)) == (7, 3.0, wire.MAX_PING_BYTES)
    events = session.receive(device.ping(8, 3, b"x" * (wire.MAX_PING_BYTES + 1)), 3.0)
    assert "a ping may carry" in refusal(events)


def test_a_lost_message_is_detected_at_the_next_ping() -> None:
    device = DeviceSession(AGREED, "here")
    assert "5 messages were sent, 2 came" in refusal(greeted().receive(device.ping(1, 5), 0.0))
    device.receive(wire.message(welcome=pb.Welcome(protocol=wire.PROTOCOL, max_frames=3)))
    pong = pb.Pong(number=1, sent=2)
    assert device.receive(wire.message(pong=pong)) == pong
    with pytest.raises(wire.ProtocolError, match="4 messages were sent, 3 came"):
        device.receive(wire.message(pong=pb.Pong(number=2, sent=4)))


def test_a_draining_server_answers_frames_in_flight() -> None:
    session = ServerSession({"digest": AGREED}, ROOM)
    session.receive(DeviceSession(AGREED, "here").hello(), 0.0)
    (run,) = session.receive(encode_tensor(1, "a", np.arange(2), "raw"), 0.0)
    assert isinstance(run, RunSegment)
    assert len(session.drain()) == 1
    (refused,) = session.receive(encode_tensor(2, "a", np.arange(2), "raw"), 0.0)
    assert isinstance(refused, Reply)
    assert wire.parse(refused.data)[0].failure.frame == 2
    assert session.receive(encode_tensor(2, "c", np.arange(2), "raw"), 0.0) == []
    (reply,) = session.finished(run, compute(run), 0.0, 1.0)
    assert isinstance(reply, Reply)


WITH_DEFAULT = Contract(
    "digest",
    (segment("ab", "a", "b"), segment("e", "", "e")),
    specs("ag"),
    specs("be"),
    {"ab": ("g",)},
)


def begin(frame: int, *names: str) -> bytes:
    return DeviceSession((WITH_DEFAULT,), "here").begin(frame, 0, names)


def with_default() -> ServerSession:
    session = ServerSession({"digest": (WITH_DEFAULT,)}, ROOM)
    session.receive(DeviceSession((WITH_DEFAULT,), "here").hello(), 0.0)
    return session


def test_a_segment_waits_for_the_defaults_that_were_announced() -> None:
    session, a = with_default(), np.arange(2)
    (other,) = session.receive(begin(1, "g"), 0.0)
    assert isinstance(other, RunSegment)
    assert other.segment.id == "e"
    assert session.receive(encode_tensor(1, "a", a, "raw"), 0.0) == []
    (run,) = session.receive(encode_tensor(1, "g", a + 1, "raw"), 0.0)
    assert isinstance(run, RunSegment)
    assert {name: array.tolist() for name, array in run.feeds.items()} == {"a": [0, 1], "g": [1, 2]}


def test_a_segment_runs_without_defaults_that_were_not_announced() -> None:
    runs = with_default().receive(encode_tensor(1, "a", np.arange(2), "raw"), 0.0)
    assert [run.segment.id for run in runs if isinstance(run, RunSegment)] == ["ab", "e"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((begin(1, "x"),), "announced that the bundle lacks"),
        ((begin(1), begin(1)), "has begun already"),
        ((begin(2), begin(1)), "is over: frames must be numbered upwards"),
    ],
)
def test_a_wrong_begin_message_closes_the_session(messages: tuple[bytes, ...], said: str) -> None:
    session = with_default()
    for message in messages:
        events = session.receive(message, 0.0)
    assert said in refusal(events)


def test_a_frame_that_begins_while_the_server_drains_is_refused() -> None:
    session = with_default()
    session.drain()
    (reply,) = session.receive(begin(1), 0.0)
    assert isinstance(reply, Reply)
    assert "shutting down" in wire.parse(reply.data)[0].failure.sentence
    assert session.frames_in_flight == 0


def test_memory_is_reserved_before_decoding() -> None:
    """A few bytes that stand for many are refused, never unpacked."""
    uploads = TensorSpecs(
        {"a": TensorSpec(ModelValue("a", "tensor(int64)", ("n",)), "zstd", 10**9)}
    )
    contract = Contract("digest", (segment("ab", "a", "b"),), uploads, specs("b"))
    memory = MemoryBudget(1000)
    reservation = memory.reserve(lambda: None)
    session = ServerSession({"digest": (contract,)}, SessionLimits(3, 10**9), reservation)
    session.receive(DeviceSession((contract,), "here").hello(), 0.0)
    huge = pack_zeros(10**8)
    over, reply = session.receive(huge, 0.0)
    assert over == FrameOver(1, "failed")
    assert isinstance(reply, Reply)
    assert "--max-memory" in wire.parse(reply.data)[0].failure.sentence
    assert memory.held_bytes == 0


def pack_zeros(count: int) -> bytes:
    """A tensor message of a few bytes that says it holds many; they are not even zstd."""
    packed = wire.PackedTensor("<i8", (count,), "zstd", memoryview(b"few bytes"))
    return wire.tensor_message(1, "a", packed)
