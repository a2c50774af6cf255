"""The Python API as an application uses it: arguments, buffers, tags, closing, deadlines."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import offload_runtimes
import pytest
from offload_runtimes import (
    BundleError,
    DeadlineError,
    InputError,
    OffloadError,
    OffloadSession,
    ServerError,
    open_session,
    parse_link,
    probe,
)
from onnx import helper

from tests.front_door.apps import WIDTH, expected, frame, split_chain
from tests.front_door.door import ESTIMATED, Door, plain_onnxruntime, save, value, weight


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """A folder with a model and its bundle."""
    made = Door(tmp_path_factory.mktemp("chain"))
    split_chain(made)
    return made


@pytest.fixture
def bundle(chain: Door) -> str:
    return str(chain.folder / "b")


@pytest.fixture
def session(bundle: str) -> Iterator[OffloadSession]:
    with open_session(bundle) as opened:
        yield opened


def test_all_names_are_importable_from_one_place() -> None:
    assert all(issubclass(e, OffloadError) for e in (InputError, BundleError, ServerError))
    assert callable(probe)
    assert parse_link("wifi").up_bps > 0
    assert set(offload_runtimes.__all__) <= set(dir(offload_runtimes))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = offload_runtimes.no_such_name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, offload_runtimes; print(*{n.split('.')[0] for n in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnxruntime", "grpc", "onnx"} & set(shown.stdout.split())


@pytest.mark.parametrize(
    ("names", "feeds", "said"),
    [
        (None, [np.zeros((1, WIDTH), np.float32)], "inputs are a dict from names to arrays"),
        (None, {"x": [[0.0] * WIDTH]}, "not list: use np.asarray"),
        ("y", frame(0), "outputs are a list of names, not 'y'"),
        ([], frame(0), "the list of outputs is empty"),
        (7, frame(0), "outputs are a list of names, not 7"),
        (["q"], frame(0), "no output 'q'"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    session: OffloadSession, names: Any, feeds: Any, said: str
) -> None:
    calls: list[Callable[[], object]] = [lambda: session.run(names, feeds)]
    calls += [lambda: session.begin(names, feeds)]
    calls += [lambda: asyncio.run(session.arun(names, feeds))]
    calls += [lambda: list(session.stream([feeds], names))]
    for call in calls:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_wrong_options_are_one_sentence(bundle: str, session: OffloadSession) -> None:
    wrong: list[dict[str, Any]] = [
        {"providers": "cpu"},
        {"link": "wifi"},
        {"deadline_s": -1.0},
        {"deadline_s": "1"},
    ]
    for options in wrong:
        with pytest.raises(InputError, match=next(iter(options)).removesuffix("s")):
            open_session(bundle, **options)
    for deadline_s in (0, float("nan"), "1"):
        with pytest.raises(InputError, match="number of seconds above 0"):
            session.run(None, frame(0), deadline_s=deadline_s)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="3 items"):
        list(session.stream([(1, 2, 3)]))  # type: ignore[list-item]


@pytest.mark.parametrize("latest", [False, True])
def test_a_source_may_reuse_its_buffer(chain: Door, bundle: str, latest: bool) -> None:
    """The usual camera loop: one buffer, filled again for each frame."""
    buffer = np.zeros((1, WIDTH), np.float32)

    def camera() -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(20):
            buffer[...] = 0.1 * number
            yield number, {"x": buffer}
        buffer[...] = -9

    with open_session(bundle, optimize=False, link=parse_link("1 Mbit/s,5 ms")) as session:
        answers = list(session.stream(camera(), latest=latest))
    assert len(answers) + session.counts.dropped == 20
    for number, (y,) in answers:
        np.testing.assert_array_equal(y, expected(chain.folder, number))


def test_an_asynchronous_source_may_reuse_its_buffer(chain: Door, bundle: str) -> None:
    buffer = np.zeros((1, WIDTH), np.float32)

    async def camera() -> Any:
        for number in range(12):
            buffer[...] = 0.1 * number
            yield {"x": buffer}
        buffer[...] = -9

    async def collect(session: OffloadSession) -> list[Any]:
        return [outputs async for outputs in session.astream(camera())]

    with open_session(bundle, optimize=False, link=parse_link("1 Mbit/s,5 ms")) as session:
        for number, (y,) in enumerate(asyncio.run(collect(session))):
            np.testing.assert_array_equal(y, expected(chain.folder, number))


def test_an_input_may_change_after_begin(chain: Door, bundle: str) -> None:
    with open_session(bundle, optimize=False, link=parse_link("1 Mbit/s,5 ms")) as session:
        feeds = frame(3)
        running = session.begin(None, feeds)
        feeds["x"][...] = -9
        np.testing.assert_array_equal(running.finish()[0], expected(chain.folder, 3))


def test_answers_carry_the_tags_of_their_frames(session: OffloadSession) -> None:
    tagged = [(f"frame {number}", frame(number)) for number in range(5)]
    assert [tag for tag, _ in session.stream(tagged)] == [tag for tag, _ in tagged]
    plain = list(session.stream([frame(1)]))
    assert [len(outputs) for outputs in plain] == [1]

    async def collect() -> list[str]:
        return [tag async for tag, _ in session.astream(tagged)]

    assert asyncio.run(collect()) == [tag for tag, _ in tagged]


def test_arun_gives_what_run_gives(session: OffloadSession) -> None:
    async def several() -> list[list[Any]]:
        return await asyncio.gather(*(session.arun(["y"], frame(n)) for n in range(6)))

    for number, (y,) in enumerate(asyncio.run(several())):
        np.testing.assert_array_equal(y, session.run(None, frame(number))[0])


def test_a_closed_session_refuses_work(bundle: str) -> None:
    session = open_session(bundle)
    running = session.begin(None, frame(0))
    session.close()
    session.close()
    calls: list[Callable[[], object]] = [
        lambda: session.run(None, frame(0)),
        lambda: session.stream([frame(0)]),
        lambda: session.astream([frame(0)]),
        lambda: asyncio.run(session.arun(None, frame(0))),
        lambda: session.rehearse(frame(0)),
        running.finish,
    ]
    for call in calls:
        with pytest.raises(InputError, match="session is closed: open a new one"):
            call()


def test_closing_ends_what_other_threads_wait_for(bundle: str) -> None:
    session = open_session(bundle, link=parse_link("1 Mbit/s,1 s"))
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            list(session.stream([frame(0)] * 9))
        except OffloadError as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not session._active.opened.runner._under_way:
        time.sleep(0.01)
    session.close()
    waiting.join(20)
    assert [type(error) for error in caught] == [InputError]
    assert "closed" in str(caught[0])


def test_the_first_deadline_holds_and_says_its_time(door: Door) -> None:
    """The server's part is not on the device yet, and takes longer to load than is allowed."""
    layers, width = 40, 256
    chain = [helper.make_node("MatMul", [f"t{i}", f"W{i}"], [f"t{i + 1}"]) for i in range(layers)]
    nodes = [helper.make_node("Relu", ["x"], ["t0"]), *chain]
    nodes.append(helper.make_node("Tanh", [f"t{layers}"], ["y"]))
    stored = {f"W{i}": weight(width, width, seed=i) for i in range(layers)}
    save(door.folder / "net.onnx", nodes, [value("x", 1, width)], [value("y", 1, width)], stored)
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "t0", "--encoding", "raw")
    x = {"x": np.ones((1, width), np.float32)}
    with open_session(door.folder / "b", link=parse_link("1 Mbit/s,1 s")) as session:
        with pytest.raises(DeadlineError, match=r"^no answer within the 5\.00 ms allowed"):
            session.run(None, x, deadline_s=0.005)
        (y,) = session.run(None, x, deadline_s=0.9)  # before the server's answer can be here
        assert session.counts.hedged == 1
        np.testing.assert_allclose(y, plain_onnxruntime(door.folder / "net.onnx", x)["y"], 1e-4)


def test_a_measured_timeline_is_a_chart_in_a_notebook(session: OffloadSession) -> None:
    _, timeline = session.run_timed(None, frame(0))
    chart = timeline._repr_svg_()
    assert chart.startswith("<svg")
    assert "uplink" in chart
