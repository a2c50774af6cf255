"""A bundle is changed while devices run: on the device, on the server, on both, and back."""

import gc
import json
import shutil
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload_cli.main import app
from offload_runtimes import BundleError, OffloadSession
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from onnx import helper
from typer.testing import CliRunner

from tests.front_door.door import ESTIMATED, Door, plain_onnxruntime, save, value, weight

WIDTH = 8
QUICK: dict[str, Any] = {"heartbeat_s": 0.02, "optimize": False}
Array = np.ndarray[Any, np.dtype[Any]]


class Versions:
    """Bundles of one network with different weights, and of one with another input."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, width, seed in (("v1", WIDTH, 0), ("v2", WIDTH, 5), ("wide", WIDTH + 1, 0)):
            nodes = [
                helper.make_node("MatMul", ["x", "W1"], ["h"]),
                helper.make_node("Relu", ["h"], ["r"]),
                helper.make_node("MatMul", ["r", "W2"], ["y"]),
            ]
            ends = [value("x", 1, width)], [value("y", 1, width)]
            stored = {f"W{i}": weight(width, width, seed=seed + i, scale=1) for i in (1, 2)}
            save(folder / f"{name}.onnx", nodes, *ends, stored)
            words = ["split", str(folder / f"{name}.onnx"), "-o", str(self.path(name))]
            options = [*ESTIMATED, "--cut", "r", "--encoding", "raw"]
            assert CliRunner().invoke(app, [*words, *options]).exit_code == 0

    def path(self, version: str) -> Path:
        return self._folder / f"{version}.bundle"

    def digest(self, version: str) -> str:
        return str(json.loads((self.path(version) / "manifest.json").read_text())["digest"])

    def answer(self, version: str) -> Array:
        return np.asarray(plain_onnxruntime(self._folder / f"{version}.onnx", frame())["y"])

    def is_from(self, answer: Array, version: str) -> bool:
        return bool(np.allclose(answer, self.answer(version), rtol=1e-5, atol=1e-6))


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions(tmp_path_factory.mktemp("versions"))


class Root:
    """A deployed root, as `offload deploy` leaves it."""

    def __init__(self, folder: Path, versions: Versions, side: str | None) -> None:
        self.folder = folder
        self.current = folder / "current"
        self._versions = versions
        self._side = side
        self._kept: list[str] = []

    def deploy(self, version: str) -> "Root":
        release = self._versions.digest(version)[:16]
        folder = self.folder / "releases" / release
        if not folder.exists():
            shutil.copytree(self._versions.path(version), folder)
            other = {"device": "server-*", "server": "device-*", None: "none"}[self._side]
            for path in folder.glob(other):
                path.unlink()
        beside = self.folder / ".current.new"
        beside.symlink_to(f"releases/{release}")
        beside.replace(self.current)
        self._kept = [release, *(kept for kept in self._kept if kept != release)]
        journal = {"releases": [{"id": kept} for kept in self._kept], "trial": None}
        (self.folder / "journal.json").write_text(json.dumps(journal))
        return self


def frame() -> dict[str, Array]:
    return {"x": np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]}


def eventually(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_s, "it never happened"
        time.sleep(0.01)


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


class Stages:
    """Frames for a stream; what is done between them, each when its condition holds."""

    def __init__(self, *stages: tuple[Callable[[], bool], Callable[[], object]]) -> None:
        self._stages = list(stages)
        self.count = 0

    def frames(self) -> Iterator[dict[str, Array]]:
        give_up_s = time.monotonic() + 30
        while self._stages:
            assert time.monotonic() < give_up_s, f"{len(self._stages)} stages are left"
            self.count += 1
            yield frame()
            is_due, do = self._stages[0]
            if is_due():
                do()
                self._stages.pop(0)
            time.sleep(0.005)


def test_both_are_updated_while_a_session_streams(
    versions: Versions, tmp_path: Path, warned: list[warnings.WarningMessage]
) -> None:
    device = Root(tmp_path / "pi", versions, None).deploy("v1")
    before, after = versions.answer("v1"), versions.answer("v2")
    server = Server([versions.path("v1")]).start()
    replaced: list[Server] = []
    answers: list[Array] = []

    def replace_server() -> None:
        server.stop()
        replaced.append(Server([versions.path("v2")], server.address).start())

    with OffloadSession(device.current, server.address, **QUICK) as session:
        stages = Stages(
            (lambda: session.counts.split >= 5, replace_server),
            (lambda: session.counts.local >= 5, lambda: device.deploy("v2")),
            (lambda: session.bundle.digest == versions.digest("v2"), answers.clear),
            (lambda: len(answers) >= 5 and session.is_split, lambda: None),
        )
        kinds = []
        for (answer,) in session.stream(stages.frames()):
            is_old, is_new = np.allclose(answer, before), np.allclose(answer, after)
            assert is_old != is_new, "an answer of neither bundle"
            kinds.append(bool(is_new))
            answers.append(answer)
        assert len(kinds) == stages.count, "a frame was lost"
        assert kinds == sorted(kinds), "an answer of the old bundle after one of the new"
        assert kinds[-1]
    replaced[0].stop()
    texts = [str(each.message) for each in warned]
    assert len(texts) == 1, texts
    assert versions.digest("v2")[:12] in texts[0]
    assert "going on without the server" in texts[0]


def test_two_servers_are_updated_in_turn_while_a_session_streams(
    versions: Versions, tmp_path: Path
) -> None:
    """The session moves to the server that still holds its bundle, then to the new bundle."""
    device = Root(tmp_path / "pi", versions, None).deploy("v1")
    servers = [Server([versions.path("v1")]).start() for _ in range(2)]
    addresses = [server.address for server in servers]

    def update(number: int) -> None:
        servers[number].drain(20)
        servers[number].stop()
        servers[number] = Server([versions.path("v2")], addresses[number]).start()

    kinds: list[str] = []
    with OffloadSession(device.current, addresses, **QUICK) as session:
        after_first = 0

        def update_first() -> None:
            nonlocal after_first
            update(0)
            after_first = session.counts.split

        stages = Stages(
            (lambda: session.counts.split >= 5, update_first),
            (lambda: session.counts.split >= after_first + 5, lambda: update(1)),
            (lambda: session.counts.local >= 5, lambda: device.deploy("v2")),
            (lambda: session.is_split and kinds[-5:] == ["v2"] * 5, lambda: None),
        )
        with warnings.catch_warnings(action="ignore"):
            for (answer,) in session.stream(stages.frames()):
                (kind,) = [v for v in ("v1", "v2") if versions.is_from(answer, v)]
                kinds.append(kind)
        assert len(kinds) == stages.count, "a frame was lost"
        assert kinds == sorted(kinds), "an answer of the old bundle after one of the new"
        assert session.bundle.digest == versions.digest("v2")
        assert set(session.counts.by_server) == set(addresses)
    for server in servers:
        server.stop()


def test_old_half_of_a_device_follows_its_directory(versions: Versions, tmp_path: Path) -> None:
    device = Root(tmp_path / "pi", versions, "device").deploy("v1")
    with Server([versions.path("v1")]) as server:
        address = server.address
        session = OffloadSession(device.current, address, on_server_loss="raise", **QUICK)
        with session:
            (answer,) = session.run(None, frame())
            assert versions.is_from(answer, "v1")
            server.stop()
            with Server([versions.path("v2")], address):
                failed = refused(session)
                assert f"{versions.digest('v1')[:12]} is not served here" in failed
                assert f"the server holds {versions.digest('v2')[:12]} (v2.bundle)" in failed
                models = weakref.ref(session._active.opened.executor)
                gc.disable()
                device.deploy("v2")
                eventually(lambda: session.is_split)
                eventually(lambda: models() is None)
                assert session.bundle.digest == versions.digest("v2")
                (answer,) = session.run(None, frame())
                assert versions.is_from(answer, "v2")
                assert session.get_inputs()[0].shape == (1, WIDTH)


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    """Turn the garbage collector on again, where a test turned it off."""
    yield
    gc.enable()


def refused(session: OffloadSession) -> str:
    """The sentence of a frame that fails because the server lacks the bundle."""
    found: list[str] = []

    def fails_so() -> bool:
        try:
            session.run(None, frame())
        except BundleError as error:
            found.append(str(error))
        except ConnectionError:
            pass
        return bool(found)

    eventually(fails_so)
    return found[0]


def test_new_device_waits_for_an_old_server(
    versions: Versions,
    tmp_path: Path,
    warned: list[warnings.WarningMessage],
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Root(tmp_path / "pi", versions, None).deploy("v1").deploy("v2")
    with Server([versions.path("v1")]) as server:
        address = server.address
        with pytest.raises(BundleError, match=f"the server holds {versions.digest('v1')[:12]}"):
            OffloadSession(device.current, address, **QUICK)
        with OffloadSession(device.current, address, require_server=False, **QUICK) as session:

            def is_refused_again() -> bool:
                (answer,) = session.run(None, frame())
                assert versions.is_from(answer, "v2")
                return caplog.messages.count("refused") >= 4  # one of each session, and two retries

            eventually(is_refused_again)
            assert session.counts.split == 0
            assert ["is not served here" in str(each.message) for each in warned] == [True]
            server.stop()
            with Server([versions.path("v2")], address):
                eventually(lambda: session.is_split)
                (answer,) = session.run(None, frame())
                assert versions.is_from(answer, "v2")
                assert session.counts.split == 1


def test_the_old_bundle_comes_back(
    versions: Versions, tmp_path: Path, warned: list[warnings.WarningMessage]
) -> None:
    device = Root(tmp_path / "pi", versions, None).deploy("v1")
    server = Server([versions.path("v1")]).start()
    address = server.address
    with OffloadSession(device.current, address, **QUICK) as session:
        session.run(None, frame())
        server.stop()
        with Server([versions.path("v2")], address):

            def is_told() -> bool:
                (answer,) = session.run(None, frame())
                assert versions.is_from(answer, "v1")
                return bool(warned)

            eventually(is_told)
            for _ in range(10):
                is_told()
            assert len(warned) == 1
        with Server([versions.path("v1")], address):
            eventually(lambda: session.is_split)
            (answer,) = session.run(None, frame())
            assert versions.is_from(answer, "v1")
            assert session.bundle.digest == versions.digest("v1")


def test_other_inputs_need_a_restart_of_the_application(versions: Versions, tmp_path: Path) -> None:
    device = Root(tmp_path / "pi", versions, "device").deploy("v1")
    server = Server([versions.path("v1")]).start()
    address = server.address
    with OffloadSession(device.current, address, **QUICK) as session:
        session.run(None, frame())
        server.stop()
        with Server([versions.path("wide")], address):
            device.deploy("wide")
            eventually(lambda: "restart the application" in refused(session))
            assert session.bundle.digest == versions.digest("v1")
        with Server([versions.path("v1")], address):
            eventually(lambda: session.is_split)
            (answer,) = session.run(None, frame())
            assert versions.is_from(answer, "v1")


def test_files_loaded_later_are_of_the_bundle_that_was_opened(
    versions: Versions, tmp_path: Path
) -> None:
    """The server's part is loaded when the server is lost; `current` may be another one then."""
    device = Root(tmp_path / "pi", versions, None).deploy("v1")
    with (
        Server([versions.path("v1")]) as server,
        OffloadSession(device.current, server.address, **QUICK) as session,
    ):
        session.run(None, frame())
        device.deploy("v2")
        server.stop()
        (answer,) = session.run(None, frame())
        assert versions.is_from(answer, "v1")


def test_a_server_of_a_deployment_serves_what_it_keeps(versions: Versions, tmp_path: Path) -> None:
    hub = Root(tmp_path / "hub", versions, "server").deploy("v1")
    old, new = (Root(tmp_path / name, versions, "device") for name in ("old", "new"))
    old.deploy("v1")
    new.deploy("v2")
    with (
        Server([hub.current]) as server,
        OffloadSession(old.current, server.address, **QUICK) as first,
    ):
        first.run(None, frame())
        hub.deploy("v2")
        server.reload_bundles()
        assert server.bundles == (versions.digest("v2"), versions.digest("v1"))
        with OffloadSession(new.current, server.address, **QUICK) as second:
            (answer,) = second.run(None, frame())
            assert versions.is_from(answer, "v2")
            (answer,) = first.run(None, frame())
            assert versions.is_from(answer, "v1")
        assert first.counts.losses == 0
    with (  # as after a restart of the service
        Server([hub.current]) as server,
        OffloadSession(old.current, server.address, **QUICK) as session,
    ):
        (answer,) = session.run(None, frame())
        assert versions.is_from(answer, "v1")
    with Server([hub.current], options=ServeOptions(max_releases=1)) as server:
        assert server.bundles == (versions.digest("v2"),)
        with pytest.raises(BundleError, match=r"the server holds \w{12} \(current\)"):
            OffloadSession(old.current, server.address, **QUICK)


def test_a_bundle_that_is_no_longer_kept_goes_with_its_last_session(
    versions: Versions, tmp_path: Path
) -> None:
    hub = tmp_path / "net.bundle"
    shutil.copytree(versions.path("v1"), hub)
    with Server([hub]) as server:
        with OffloadSession(versions.path("v1"), server.address, **QUICK) as session:
            shutil.rmtree(hub)
            shutil.copytree(versions.path("v2"), hub)
            server.reload_bundles()
            (answer,) = session.run(None, frame())
            assert versions.is_from(answer, "v1")
            assert session.counts.split == 1
            with pytest.raises(BundleError, match="is not served here"):
                OffloadSession(versions.path("v1"), server.address, **QUICK)
        with OffloadSession(versions.path("v2"), server.address, **QUICK) as session:
            (answer,) = session.run(None, frame())
            assert versions.is_from(answer, "v2")


@pytest.mark.door
def test_deploying_to_a_server_that_runs(versions: Versions, door: Door) -> None:
    """The commands: both halves of the next release arrive while a device sends frames."""
    v1, v2 = versions.path("v1"), versions.path("v2")
    door.ok("deploy", v1, "hub", "--side", "server")
    door.ok("deploy", v1, "pi", "--side", "device")
    current = door.folder / "pi" / "current"
    answers: list[Array] = []
    stopped = threading.Event()
    with (
        door.serving("hub/current", "--no-optimize") as address,
        OffloadSession(current, address, **QUICK) as session,
    ):

        def send_frames() -> None:
            while not stopped.is_set():
                answers.append(session.run(None, frame())[0])
                time.sleep(0.01)

        thread = threading.Thread(target=send_frames)
        thread.start()
        door.ok("deploy", v2, "hub", "--side", "server")
        door.ok("deploy", v2, "pi", "--side", "device")
        np.savez(door.folder / "in.npz", x=frame()["x"])
        run = ("run", "pi/current", "--input", "in.npz", "--output", "out.npz")

        def is_taken_up() -> bool:
            done = door.offload(*run, "--server", address)
            assert done.returncode == 0 or "is not served here" in done.stderr, done.stderr
            return done.returncode == 0

        eventually(is_taken_up)
        stopped.set()
        thread.join()
        assert session.counts.losses == 0
        assert session.counts.split == len(answers)
    assert len({answer.tobytes() for answer in answers}) == 1
    assert versions.is_from(answers[0], "v1")
    assert versions.is_from(np.load(door.folder / "out.npz")["y"], "v2")
