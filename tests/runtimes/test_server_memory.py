"""A server under `--max-memory`: measured on a process of its own, and what its sessions see."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from offload.errors import InputError
from offload.planning.plan import Send, Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions
from offload_runtimes.server import Server
from offload_runtimes.serving.serve_options import ServeOptions
from onnx import TensorProto, helper

from tests.runtimes import bundles, models
from tests.runtimes.bundles import Made

MB = 10**6


def greedy(folder: Path) -> Made:
    """A bundle whose server part asks for as many floats as its input says, twice."""
    n = helper.make_tensor_value_info("n", TensorProto.INT64, [1])
    nodes = [
        helper.make_node("Expand", ["x", "n"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["f"]),
        helper.make_node("ReduceMax", ["f"], ["y"], keepdims=1),
    ]
    whole = models.model(nodes, [models.floats("x", 1), n], [models.floats("y", 1)])
    part = bundles.segment("server-0", Side.SERVER, ["x", "n"], ["y"])
    steps, uploads = [("send", "x"), ("send", "n")], [Send("x", 4), Send("n", 8)]
    return bundles.write(folder, whole, [(part, whole)], steps, uploads, ["y"])


def ask(session: OffloadSession, count: int) -> float:
    feeds: dict[str, np.ndarray] = {"x": np.ones(1, np.float32), "n": np.array([count], np.int64)}
    return float(session.run(None, feeds)[0][0])


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, int]]:
    """Address and process of a server."""
    words = (sys.executable, "-m", "offload_runtimes", "serve", *options, "--listen=127.0.0.1:0")
    with subprocess.Popen([*words, "--threads=1"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())["listening"], process.pid
        finally:
            process.terminate()


def peak_bytes(pid: int) -> int:
    """The most that a process ever had in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return int(status.get("VmHWM", status["VmRSS"]).split()[0]) * 1024


def sessions(made: Made, address: str, count: int) -> list[OffloadSession]:
    """Patient ones: a run that takes long on a loaded machine is not a server that is lost."""
    return [
        OffloadSession(made.bundle, address, on_server_loss="raise", patience_s=100)
        for _ in range(count)
    ]


def test_a_process_keeps_its_limit(tmp_path: Path) -> None:
    """Gigabytes and terabytes fail that frame alone; sessions, this one included, go on."""
    made = greedy(tmp_path / "greedy")
    with serving(str(made.bundle.path), "--max-memory=300 MB") as (address, pid):
        one, other = sessions(made, address, 2)
        with one, other:
            assert ask(one, 10) == 2
            idle = peak_bytes(pid)
            for count in (750 * MB, 10**12, 10**18, 50 * MB):
                with pytest.raises(InputError, match="needs more memory than the server allows"):
                    ask(one, count)
                assert ask(other, 1000) == 2
                assert ask(one, 1000) == 2
            for count in (5 * MB, 10 * MB, 25 * MB):  # pieces of all sizes, and nearly all at last
                assert ask(one, count) == 2
            assert one.counts.split == 8
        assert peak_bytes(pid) - idle < 300 * MB


def test_terabytes_without_a_limit(tmp_path: Path) -> None:
    made = greedy(tmp_path / "greedy")
    with serving(str(made.bundle.path)) as (address, _):
        one, other = sessions(made, address, 2)
        with one, other:
            for count in (10**15, 10**18):  # beyond what any process can address
                with pytest.raises(InputError, match="more memory than this machine has") as caught:
                    ask(one, count)
                assert "\n" not in str(caught.value)
            assert ask(one, 10) == ask(other, 10) == 2


def test_weights_that_do_not_fit_are_refused_at_the_start(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "b", width=1200)
    with pytest.raises(
        InputError, match=r"b cannot be served: its weights take 5\.\d+ MB"
    ) as caught:
        Server([made.bundle], options=ServeOptions(max_memory_bytes=2 * MB))
    assert "--max-memory 2.00 MB leaves 1.50 MB for models" in str(caught.value)
    with pytest.raises(InputError, match="too little"):
        Server([made.bundle], options=ServeOptions(max_memory_bytes=1000))
    plain = EngineOptions(threads=1)
    with Server([made.bundle], options=ServeOptions(plain, max_memory_bytes=200 * MB)) as server:
        (session,), feeds = sessions(made, server.address, 1), made.feeds()
        with session:
            (y,) = session.run(["y"], feeds)
        np.testing.assert_allclose(y, made.expected(feeds)[0], rtol=1e-3)
