"""Models are timed on a target by a worker process, as they are on this machine."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from offload.bundle.engine_input import whole_input
from offload.errors import InputError, ServerError
from offload.graph.load import load_model
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.machine import TimedRun
from offload_runtimes.measure.profile import measure, optimized_model
from offload_runtimes.measure.target_machine import TargetMachine
from onnx import helper

from tests.front_door.door import save, value, weight

OPTIONS = EngineOptions(threads=1)


class Pipes:
    """A worker's standard input and output."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def readline(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(size)


@contextmanager
def working() -> Iterator[tuple[TargetMachine, "subprocess.Popen[bytes]"]]:
    command = [sys.executable, "-m", "offload_runtimes", "measure"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield TargetMachine("pi", Pipes(process)), process
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait(10)


def network(path: Path, external: bool = False) -> Path:
    """Two matrix products with a Relu between them."""
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "W2"], ["y"]),
    ]
    stored = {f"W{i}": weight(256, 256, seed=i) for i in (1, 2)}
    save(path, nodes, [value("x", 64, 256)], [value("y", 64, 256)], stored, external=external)
    return path


@pytest.mark.parametrize("external", [False, True])
def test_a_profile_of_a_target(tmp_path: Path, external: bool) -> None:
    model = load_model(network(tmp_path / "net.onnx", external))
    with working() as (machine, process):
        optimized = optimized_model(model, tmp_path, machine=machine)
        profile = measure(optimized, OPTIONS, runs=5, machine=machine)
        here = optimized_model(model, tmp_path)
        assert optimized.graph.layers == here.graph.layers
        assert [cost.name for cost in profile.layers] == [x.name for x in here.graph.layers]
        assert sum(cost.seconds_s for cost in profile.layers) == pytest.approx(profile.whole_s)
        assert profile.provider == "cpu"
        assert profile.machine == machine.name
        assert profile.client_bytes is None or profile.client_bytes > 1e7
        assert process.poll() is None


def test_tensors_between_parts_stay_on_the_target(tmp_path: Path) -> None:
    model = load_model(network(tmp_path / "net.onnx"))
    feeds = {"x": np.ones((64, 256), np.float32)}
    with working() as (machine, _):
        loaded = machine.load(whole_input(model), OPTIONS)
        (output,) = loaded.keep(["y"], feeds)
        again = machine.load(whole_input(model), OPTIONS, once=True)
        seconds = machine.time_in_turns({"a": TimedRun(again, {"x": output})}, 4, 10.0)
        assert len(seconds["a"]) == 4
        with pytest.raises(InputError, match=r"pi: .*no input 'z'"):
            again.keep(["y"], {"z": output})


def test_a_file_that_changed_is_sent_again(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    feeds = {"x": np.ones((64, 256), np.float32)}
    with working() as (machine, _):
        first = machine.load(path, OPTIONS)
        save(
            path,
            [helper.make_node("Neg", ["x"], ["z"])],
            [value("x", 64, 256)],
            [value("z", 64, 256)],
        )
        second = machine.load(path, OPTIONS)
        assert (first.outputs, second.outputs) == (("y",), ("z",))
        assert np.array_equal(second.run(feeds)[0], -feeds["x"])


def test_a_target_that_goes_away(tmp_path: Path) -> None:
    model = load_model(network(tmp_path / "net.onnx"))
    with working() as (machine, process):
        process.kill()
        with pytest.raises(ServerError, match="worker on pi ended early"):
            machine.load(whole_input(model), OPTIONS)


def test_the_worker_ends_with_its_input(tmp_path: Path) -> None:
    """Also in the middle of a run."""
    model = load_model(network(tmp_path / "net.onnx"))
    with working() as (machine, process):
        loaded = machine.load(whole_input(model), OPTIONS)
        feeds = {"x": np.ones((64, 256), np.float32)}
        machine.start_timing({"a": TimedRun(loaded, feeds)}, 10**6, 60.0)
        time.sleep(0.3)
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        process.wait(5)
