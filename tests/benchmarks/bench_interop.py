"""Our server beside Triton's Python backend, by perf_analyzer; our session beside tritonclient.

Run as `make bench-interop`. The servers run the same ONNX model, 74 kB up and 32 bytes down, on
one thread of onnxruntime each, and are measured in turns: a noisy moment hits all alike. A bare
server of grpcio shows how much of the difference is grpcio's.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from offload.planning.plan import Side
from offload_runtimes.client import OffloadSession
from offload_runtimes.engine import EngineOptions, load
from onnx import helper, numpy_helper

from tests.benchmarks.goals import Goal, report
from tests.front_door.door import ESTIMATED, Door
from tests.interop.triton import CLIENT, ROOT, Triton, with_python_backend

ANALYZER = ROOT / "build/perf/bin/perf_analyzer"
MODEL = "net.server"
SHAPE = (1, 4, 68, 68)
WARM = 50


@dataclass(frozen=True)
class Figures:
    """What perf_analyzer measured."""

    p50_s: float
    per_s: float


def bundle_of(door: Door) -> None:
    """A bundle `b`: a positive part on the device, a small convolution on the server."""
    weights = (np.random.default_rng(0).standard_normal((8, 4, 3, 3)) / 6).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, SHAPE)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8])
    graph = helper.make_graph(nodes, "net", [x], [y], [numpy_helper.from_array(weights, "w")])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), door.folder / "net.onnx")
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--backend", "kserve")
    door.ok("export", "triton", "b", "-o", "repository")


def analyze(folder: Path, address: str, concurrency: int, *, streaming: bool) -> Figures:
    """One run of perf_analyzer."""
    site = next((ROOT / "build/perf").glob("lib/python*/site-packages"))
    libraries = site / "nvidia/cuda_runtime/lib"
    table, data = folder / "perf.csv", folder / "inputs.json"
    if not data.exists():
        # By default perf_analyzer sends random bytes. Read as floats, some are NaN or denormal, and
        # onnxruntime takes three times as long.
        h = np.random.default_rng(0).standard_normal(SHAPE).ravel().round(3).tolist()
        data.write_text(json.dumps({"data": [{"h": {"content": h, "shape": SHAPE}}]}))
    command = [str(ANALYZER), "-m", MODEL, "-u", address, "-i", "grpc", "-f", str(table)]
    command += ["--input-data", str(data)]
    # It writes nothing unless three windows agree within -s percent.
    command += ["--concurrency-range", str(concurrency), "-p", "1500", "-s", "999", "-r", "3"]
    command += ["--percentile", "50", *(["--streaming"] if streaming else [])]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert table.exists(), done.stdout + done.stderr
    (row,) = csv.DictReader(table.read_text().splitlines())
    table.unlink()
    return Figures(float(row["p50 latency"]) / 1e6, float(row["Inferences/Second"]))


@contextmanager
def bare_server(folder: Path, ours: str) -> Iterator[str]:
    """The address of a bare server of the same model, see its module."""
    model = folder / "repository" / MODEL / "1/model.onnx"
    command = [sys.executable, "-m", "tests.benchmarks.bare_server", str(model), MODEL, ours]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def servers(folder: Path, ours: str, theirs: str, bare: str, rounds: int) -> list[Goal]:
    """The servers at several concurrencies, unary and in streams."""
    goals = []
    print("| a bare server of grpcio, of Triton's | p50 | throughput |")
    print("| --- | --- | --- |")
    for streaming, concurrency in itertools.product((False, True), (1, 4, 16)):
        rows = [
            [
                analyze(folder, address, concurrency, streaming=streaming)
                for address in (ours, theirs, bare)
            ]
            for _ in range(rounds)
        ]
        own, other, least = (
            Figures(
                statistics.median(figures.p50_s for figures in column),
                statistics.median(figures.per_s for figures in column),
            )
            for column in zip(*rows, strict=True)
        )
        kind = "stream" if streaming else "unary"
        most = 1.0 if streaming else 1.2
        print(
            f"| {kind}, {concurrency} | {least.p50_s / other.p50_s:.2f}"
            f" ({least.p50_s * 1e3:.2f} ms) | {least.per_s / other.per_s:.2f}"
            f" ({least.per_s:.0f}/s) |",
            flush=True,
        )
        ratio = own.p50_s / other.p50_s
        said = f"{ratio:.2f} ({own.p50_s * 1e3:.2f} / {other.p50_s * 1e3:.2f} ms)"
        goals.append(
            Goal(f"p50 of Triton's, {kind}, {concurrency}", f"<= {most}", said, ratio <= most)
        )
        ratio = own.per_s / other.per_s
        said = f"{ratio:.2f} ({own.per_s:.0f} / {other.per_s:.0f}/s)"
        name = f"throughput of Triton's, {kind}, {concurrency}"
        goals.append(Goal(name, ">= 1.0", said, ratio >= 1.0))
    return goals


CLIENT_LOOP = """
import json, queue, sys, time
import numpy as np
import tritonclient.grpc as triton
address, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = triton.InferenceServerClient(address)
h = triton.InferInput("h", [1, 4, 68, 68], "FP32")
h.set_data_from_numpy(np.ones((1, 4, 68, 68), np.float32))
for _ in range(50):
    client.infer(name, [h])
while sys.stdin.readline():
    seconds = []
    for _ in range(count):
        start_s = time.perf_counter()
        client.infer(name, [h]).as_numpy("y")
        seconds.append(time.perf_counter() - start_s)
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    start_s = time.perf_counter()
    for number in range(count):
        client.async_stream_infer(name, [h])
        if number >= 4:
            answers.get()
    for _ in range(4):
        answers.get()
    stream_s = time.perf_counter() - start_s
    client.stop_stream()
    print(json.dumps([sorted(seconds)[count // 2], count / stream_s]), flush=True)
"""


def clients(door: Door, address: str, rounds: int, count: int = 300) -> list[Goal]:
    """Our session beside tritonclient, both with our server, each in a process of its own."""
    feeds = {"x": np.ones(SHAPE, np.float32)}
    other = subprocess.Popen(
        [CLIENT, "-c", CLIENT_LOOP, address, MODEL, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    head = load(door.folder / "b/device-0.onnx", EngineOptions(threads=1))
    rows: list[tuple[float, float, float, float]] = []
    with OffloadSession(door.folder / "b", address, threads=1) as session:
        assert session.bundle.plan.on(Side.SERVER)
        for _ in range(WARM):
            session.run(None, feeds)
        for _ in range(rounds):
            heads, seconds = [], []
            for _ in range(count):
                start_s = time.perf_counter()
                head.run(None, feeds)
                between_s = time.perf_counter()
                session.run(None, feeds)
                heads.append(between_s - start_s)
                seconds.append(time.perf_counter() - between_s)
            start_s = time.perf_counter()
            for _ in session.stream(itertools.repeat(feeds, count), window=4):
                pass
            own_per_s = count / (time.perf_counter() - start_s)
            other.stdin.write("go\n")
            other.stdin.flush()
            their_s, their_per_s = json.loads(other.stdout.readline())
            own_s = statistics.median(seconds) - statistics.median(heads)
            rows.append((own_s, their_s, own_per_s, their_per_s))
    other.stdin.close()
    other.wait()
    own_s, their_s, own_per_s, their_per_s = (statistics.median(c) for c in zip(*rows, strict=True))
    latency, rate = own_s / their_s, own_per_s / their_per_s
    return [
        Goal(
            "session's p50 less its segment, of tritonclient's unary",
            "<= 1.0",
            f"{latency:.2f} ({own_s * 1e3:.2f} / {their_s * 1e3:.2f} ms)",
            latency <= 1.0,
        ),
        Goal(
            "session's frames/s in a stream, of tritonclient's stream",
            ">= 1.0",
            f"{rate:.2f} ({own_per_s:.0f} / {their_per_s:.0f}/s)",
            rate >= 1.0,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("servers", "clients"))
    asked = parser.parse_args()
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as name:
        door = Door(Path(name))
        bundle_of(door)
        with door.serving("b", "--threads", "1") as address:
            if asked.only != "clients":
                served = with_python_backend(door.folder / "repository", door.folder / "served")
                triton = Triton(served, door.folder)
                try:
                    with bare_server(door.folder, address) as bare:
                        found = servers(door.folder, address, triton.address, bare, asked.rounds)
                    goals += found
                finally:
                    triton.kill()
            if asked.only != "servers":
                goals += clients(door, address, asked.rounds)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return report(goals)


if __name__ == "__main__":
    sys.exit(main())
