"""An error of a segment fails its frame only; the server continues to serve all sessions."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload.errors import DeadlineError, InputError, OffloadError, ServerError
from offload.planning.plan import Send, Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from onnx import helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made

X = {"x": np.ones((1, 4), np.float32)}
PLAIN = EngineOptions(threads=1)


class OutOfTheTree(BaseException):
    """A BaseException that is not an Exception."""


RAISED = [
    KeyError("label"),
    MemoryError(),
    RuntimeError("two\nlines"),
    AttributeError("'list' object has no attribute 'nbytes'"),
    RecursionError("too deep"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    SystemExit(1),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    OutOfTheTree("away"),
    InputError("a value is wrong: give another"),
    DeadlineError("it took too long: allow more"),
]


def doubling(folder: Path, factor: float) -> Made:
    """A bundle whose server part multiplies what the device sends."""
    x, y = models.floats("x", "n", 4), models.floats("y", "n", 4)
    stored = {"k": np.array([factor], np.float32)}
    whole = models.model([helper.make_node("Mul", ["x", "k"], ["y"])], [x], [y], stored)
    part = bundles.segment("server-0", Side.SERVER, ["x"], ["y"])
    return bundles.write(folder, whole, [(part, whole)], [("send", "x")], [Send("x", 16)], ["y"])


class Failing:
    """A run that raises, or returns a value that cannot be sent."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def stop(self) -> None:
        """Do nothing."""

    def run(self, *_: object) -> list[Any]:
        """Raise or return, as the test demands."""
        if isinstance(self.answer, BaseException):
            raise self.answer
        return [self.answer]


def asks(session: OffloadSession, factor: float) -> None:
    (y,) = session.run(None, X)
    np.testing.assert_array_equal(y, factor * X["x"])


@pytest.mark.parametrize("rows", [1, 4])
def test_every_exception_fails_its_frame_and_nothing_else(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = doubling(tmp_path / "bad", 2), doubling(tmp_path / "good", 3)
    caplog.set_level(logging.CRITICAL, "offload.server")
    with Server(
        [bad.bundle, good.bundle], options=ServeOptions(PLAIN, workers=1, batch_rows=rows)
    ) as server:
        engine = server._bundles.loaded[bad.bundle.digest].engines["server-0"]
        with (
            OffloadSession(bad.bundle, server.address, on_server_loss="raise") as one,
            OffloadSession(good.bundle, server.address, on_server_loss="raise") as other,
        ):
            for error in RAISED:
                with monkeypatch.context() as patched:
                    patched.setattr(engine, "prepare", lambda *_, error=error: Failing(error))
                    with pytest.raises(OffloadError) as caught:
                        one.run(None, X, 20)
                assert "\n" not in str(caught.value)
                if isinstance(error, OffloadError):
                    assert str(error) in str(caught.value)
                    assert isinstance(caught.value, type(error))
                else:
                    assert isinstance(caught.value, ServerError)
                    assert f"server-0 failed on the server ({type(error).__name__}" in str(
                        caught.value
                    )
                asks(other, 3)
                asks(one, 2)  # in the same session
            assert one.counts.losses == other.counts.losses == 0


def test_an_answer_that_cannot_be_sent_fails_its_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = doubling(tmp_path / "bad", 2)
    with (
        Server([bad.bundle], options=ServeOptions(PLAIN)) as server,
        OffloadSession(bad.bundle, server.address, on_server_loss="raise") as session,
    ):
        engine = server._bundles.loaded[bad.bundle.digest].engines["server-0"]
        with monkeypatch.context() as patched:
            patched.setattr(engine, "prepare", lambda *_: Failing(None))
            with pytest.raises(InputError, match="answer 'y' cannot be sent: a NoneType"):
                session.run(None, X, 20)
        asks(session, 2)


def test_what_breaks_a_session_ends_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error outside of a segment's run ends the session; its device gets the reason."""
    made = doubling(tmp_path / "b", 2)
    caplog.set_level(logging.CRITICAL, "offload.server")
    said = r"the session failed on the server \(KeyError"
    with Server([made.bundle], options=ServeOptions(PLAIN, workers=1)) as server:
        with (
            OffloadSession(made.bundle, server.address, on_server_loss="raise") as one,
            monkeypatch.context() as patched,
        ):
            patched.setattr(server._observer, "computed", Failing(KeyError("stage")).run)
            with pytest.raises(ServerError, match=said):
                one.run(None, X, 20)
        with OffloadSession(made.bundle, server.address, on_server_loss="raise") as other:
            asks(other, 2)


def test_a_tensor_longer_than_the_server_takes_is_said_before_it_is_sent(tmp_path: Path) -> None:
    made = doubling(tmp_path / "b", 2)
    long = {"x": np.ones((2**16, 4), np.float32)}
    with Server([made.bundle], options=ServeOptions(PLAIN, max_memory_bytes=3 * 2**20)) as server:
        with OffloadSession(made.bundle, server.address, on_server_loss="raise") as session:
            with (
                pytest.warns(RuntimeWarning, match="going on without"),
                pytest.raises(
                    ServerError, match=r"'x' takes 1\.05 MB, server .* takes .* larger --max-memory"
                ),
            ):
                session.run(None, long)
            asks(session, 2)
        with OffloadSession(made.bundle, server.address) as session:
            with pytest.warns(RuntimeWarning, match="going on without the server"):
                (y,) = session.run(None, long)
            assert y.shape == (2**16, 4)
            asks(session, 2)
            assert session.counts.losses == 0
