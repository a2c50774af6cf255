"""The installed command, and small models as exporters write them, for the front-door tests."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# Device and server speeds in FLOP/s: planning measures nothing then.
ESTIMATED = ("--device", "1e9", "--server", "1e11")
PLAIN = "--no-optimize"

Array = np.ndarray[Any, np.dtype[Any]]


class Door:
    """Runs the `offload` command in a folder of its own, with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def offload(
        self, *words: str | Path, timeout_s: float = 120, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command and return how it ended; the test fails when it hangs."""
        return subprocess.run(
            [sys.executable, "-c", "from offload_cli.main import main; main()", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self.folder,
            env=self.environment(env),
            check=False,
        )

    def measured(self, *words: str | Path) -> tuple[subprocess.CompletedProcess[str], int]:
        """Run the command and return how it ended, with its peak resident memory in bytes."""
        report = self.folder / "peak"
        # Not ru_maxrss: it begins with the resident memory of the process that forked this one.
        code = (
            "import atexit, pathlib, sys; peak = pathlib.Path(sys.argv.pop(1)); atexit.register("
            "lambda: peak.write_text(pathlib.Path('/proc/self/status').read_text()));"
            " from offload_cli.main import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(report), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=280,
            cwd=self.folder,
            env=self.environment(),
            check=False,
        )
        found = re.search(r"VmHWM:\s+(\d+) kB", report.read_text())
        assert found
        return done, int(found[1]) * 1024

    def light(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the light runtime's own command, `python -m offload_runtimes`."""
        return subprocess.run(
            [sys.executable, "-m", "offload_runtimes", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.folder,
            env=self.environment(),
            check=False,
        )

    def split_two_layers(self, width: int = 8) -> str:
        """Split a small model at `h` and write an input, `in.npz`; gives the bundle's name."""
        two_layers(self.folder / "net.onnx", width)
        self.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "h", "--encoding", "raw")
        np.savez(self.folder / "in.npz", x=np.ones((1, width), np.float32))
        return "b"

    def ok(self, *words: str | Path, **options: Any) -> str:
        """Run the command, check that it succeeds, and return what it wrote to stdout."""
        done = self.offload(*words, **options)
        assert done.returncode == 0, f"offload {' '.join(map(str, words))}: {done.stderr}"
        return done.stdout

    def refused(self, *words: str | Path, **options: Any) -> str:
        """Run the command, check that it fails with one sentence, and return the sentence."""
        done = self.offload(*words, **options)
        assert done.returncode == 1, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        return errors[0].removeprefix("error: ")

    def json(self, *words: str | Path, **options: Any) -> dict[str, Any]:
        """Run the command with `--format json` and return the value it wrote."""
        value = json.loads(self.ok(*words, "--format", "json", **options))
        assert isinstance(value, dict)
        return value

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the command: a cache of its own, a wide terminal."""
        own = {"XDG_CACHE_HOME": str(self.folder / "cache"), "COLUMNS": "200"}
        return {**os.environ, **own, **(more or {})}

    @contextmanager
    def serving(self, *words: str | Path, listen: str = "127.0.0.1:0") -> Iterator[str]:
        """`offload serve` on a free loopback port or another address; gives its address."""
        with self.server(*words, listen=listen) as (address, _):
            yield address

    @contextmanager
    def server(
        self, *words: str | Path, listen: str = "127.0.0.1:0"
    ) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """As `serving`; gives its process, too."""
        command = "from offload_cli.main import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", *map(str, words), "--listen", listen],
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment(),
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"((?:\d+\.){3}\d+:\d+|unix:\S+)", line)
            assert found, f"the server did not start: {line}"
            yield found[1], process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    stored: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Mapping[str, int] | None = None,
    external: bool = False,
    check: bool = True,
) -> onnx.ModelProto:
    """Write a model file; with `external`, all weights go to `NAME.onnx.data` beside it."""
    initializers = [numpy_helper.from_array(array, name) for name, array in (stored or {}).items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    if check:
        onnx.checker.check_model(proto)
    if external:
        kept = onnx.ModelProto()
        kept.CopyFrom(proto)
        location = f"{path.name}.data"
        onnx.save(kept, path, save_as_external_data=True, location=location, size_threshold=0)
    else:
        onnx.save(proto, path)
    return proto


def value(name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A graph input or output; no sizes mean a scalar."""
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(*shape: int, seed: int = 0, scale: float = 0.1) -> Array:
    """Seeded normal float32 weights."""
    drawn = np.random.default_rng(seed).standard_normal(shape) * scale
    return np.asarray(drawn, np.float32)


def plain_onnxruntime(
    path: Path, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None
) -> dict[str, Any]:
    """What onnxruntime itself answers, without optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = list(outputs or (node.name for node in session.get_outputs()))
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def two_layers(path: Path, width: int = 8) -> None:
    """`x` times W gives `h`, whose positive part is `y`."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    ends = [value("x", 1, width)], [value("y", 1, width)]
    save(path, nodes, *ends, {"W": weight(width, width)})
