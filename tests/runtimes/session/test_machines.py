"""Both state machines under random messages: they never break, leak or answer wrongly."""

import numpy as np
import offload_runtimes.wire.offload_pb2 as pb
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from offload.bundle.bundle import Value
from offload.errors import BundleError, InputError
from offload.plan.plan import Segment, Side
from offload_runtimes.session.device import Arrived, DeviceSession, Failed, Leaving, Opened
from offload_runtimes.session.server import Close, Event, Limits, Over, Reply, Run, ServerSession
from offload_runtimes.wire import messages as wire
from offload_runtimes.wire.contract import Contract, Port

ROOM = Limits(max_frames=3, max_bytes=10_000)


def port(name: str) -> Port:
    return Port(Value(name, "tensor(int64)", ("n",)), "raw", 800)


def segment(name: str, inputs: str, outputs: str) -> Segment:
    return Segment(name, Side.SERVER, (), (), tuple(inputs), tuple(outputs))


# a -> b, c -> d, and both joined: e. Downloads are b and e, uploads a and c.
SEGMENTS = (segment("ab", "a", "b"), segment("cd", "c", "d"), segment("bde", "bd", "e"))
CONTRACT = Contract("digest", SEGMENTS, {n: port(n) for n in "ac"}, {n: port(n) for n in "be"})
WORK = {
    "ab": lambda a: {"b": a + 1},
    "cd": lambda c: {"d": c * 2},
    "bde": lambda b, d: {"e": b + d},
}


def compute(run: Run) -> dict[str, np.ndarray]:
    return WORK[run.segment.id](**run.feeds)  # type: ignore[no-any-return, operator]


def values(frame: int) -> dict[str, np.ndarray]:
    return {"a": np.arange(frame % 5), "c": np.arange(frame % 5) + frame}


class ServerMachine(RuleBasedStateMachine):
    """A server session against a model of what a right device has asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.session = ServerSession({"digest": CONTRACT}, ROOM)
        self.running: list[Run] = []
        self.answers: dict[int, dict[str, np.ndarray]] = {}
        self.sent: dict[int, set[str]] = {}
        self.over: list[int] = []
        self.number = 0
        self.closes = 0

    def take(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Run():
                    self.running.append(event)
                case Over(frame, _):
                    self.over.append(frame)
                case Close():
                    self.closes += 1
                case Reply(data):
                    self.reply(wire.parse(data))

    def reply(self, message: pb.Message) -> None:
        if message.WhichOneof("body") == "tensor":
            array = wire.decode_tensor(message.tensor, CONTRACT.downloads)
            answers = self.answers.setdefault(message.tensor.frame, {})
            assert message.tensor.name not in answers
            answers[message.tensor.name] = array

    def send(self, message: bytes) -> None:
        self.take(self.session.receive(message, 0.0))

    @initialize()
    def hello(self) -> None:
        self.send(DeviceSession(CONTRACT, "here").hello())
        assert self.session.bundle == "digest"

    @precondition(lambda self: len(self.open()) < ROOM.max_frames)
    @rule(name=st.sampled_from("ac"))
    def begin(self, name: str) -> None:
        self.number += 1
        self.sent[self.number] = set()
        self.upload(self.number, name)

    @precondition(lambda self: self.unsent())
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.upload(*data.draw(st.sampled_from(self.unsent())))

    def upload(self, frame: int, name: str) -> None:
        self.sent[frame].add(name)
        self.send(wire.encode_tensor(frame, name, values(frame)[name], "raw"))

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
        self.send(pb.Message(cancel=pb.Cancel(frame=frame)).SerializeToString())

    @rule(number=st.integers(0, 2**64 - 1))
    def ping(self, number: int) -> None:
        self.send(pb.Message(ping=pb.Ping(number=number)).SerializeToString())

    @rule(
        wrong=st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda frame, name, count: wire.encode_tensor(
                    frame, name, np.zeros(count, np.int64), "raw"
                ),
                st.integers(0, 2**40),
                st.sampled_from(["b", "x", ""]),
                st.integers(0, 200),
            ),
            st.just(DeviceSession(CONTRACT, "here").hello()),
        )
    )
    def misbehave(self, wrong: bytes) -> None:
        self.send(wrong)

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
        assert self.session.frames_in_flight == 0
        assert set(self.over) == set(self.sent)


TestServerMachine = ServerMachine.TestCase
TestServerMachine.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def opened() -> DeviceSession:
    session = DeviceSession(CONTRACT, "here")
    welcome = pb.Welcome(protocol=wire.PROTOCOL, max_frames=3)
    assert session.receive(pb.Message(welcome=welcome).SerializeToString()) == Opened(3)
    return session


def answer(frame: int, name: str) -> bytes:
    return wire.encode_tensor(frame, name, np.zeros(2, np.int64), "raw")


def test_device_takes_each_answer_once() -> None:
    session = opened()
    frame = session.open_frame()
    event = session.receive(answer(frame, "b"))
    assert isinstance(event, Arrived)
    with pytest.raises(wire.ProtocolError, match="'b' twice"):
        session.receive(answer(frame, "b"))
    assert isinstance(session.receive(answer(frame, "e")), Arrived)
    assert session.receive(answer(frame, "e")) is None
    assert session.cancel(frame) is None


def test_device_ignores_answers_it_gave_up() -> None:
    session = opened()
    frame = session.open_frame()
    assert session.cancel(frame) is not None
    assert session.receive(answer(frame, "e")) is None
    assert session.receive(wire.encode_failure(InputError("no"), frame)) is None
    with pytest.raises(wire.ProtocolError, match="never asked for"):
        session.receive(answer(frame + 1, "e"))


def test_device_maps_failures() -> None:
    session = opened()
    frame = session.open_frame()
    one = session.receive(wire.encode_failure(InputError("bad frame"), frame))
    assert isinstance(one, Failed)
    assert one.frame == frame
    every = session.receive(wire.encode_failure(BundleError("gone")))
    assert isinstance(every, Failed)
    assert every.frame is None
    assert isinstance(every.error, BundleError)
    goodbye = pb.Message(goodbye=pb.Goodbye()).SerializeToString()
    assert session.receive(goodbye) == Leaving()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        b"",
        answer(1, "b"),
        pb.Message(welcome=pb.Welcome(protocol=99, max_frames=1)).SerializeToString(),
        pb.Message(welcome=pb.Welcome(protocol=1)).SerializeToString(),
        pb.Message(hello=pb.Hello()).SerializeToString(),
    ],
)
def test_device_refuses_a_wrong_server(data: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        DeviceSession(CONTRACT, "here").receive(data)


def test_server_says_goodbye_and_answers_what_it_has() -> None:
    session = ServerSession({"digest": CONTRACT}, ROOM)
    session.receive(DeviceSession(CONTRACT, "here").hello(), 0.0)
    (run,) = session.receive(wire.encode_tensor(1, "a", np.arange(2), "raw"), 0.0)
    assert isinstance(run, Run)
    assert len(session.drain()) == 1
    (refused,) = session.receive(wire.encode_tensor(2, "a", np.arange(2), "raw"), 0.0)
    assert isinstance(refused, Reply)
    assert wire.parse(refused.data).failure.frame == 2
    assert session.receive(wire.encode_tensor(2, "c", np.arange(2), "raw"), 0.0) == []
    (reply,) = session.finished(run, compute(run), 0.0, 1.0)
    assert isinstance(reply, Reply)
