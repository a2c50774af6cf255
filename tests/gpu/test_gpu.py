"""A GPU server: the provider computes, its numbers are right, profiles and splits use it.

Run by `make test-gpu`. Where no GPU is found, the same steps run on the CPU, so that all but the
hardware is checked, and the first test says so by being skipped.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from offload.costs.profile import load_profile
from offload.errors import InputError
from offload_models.zoo import build
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.profiling import kernel_providers
from offload_runtimes.installation import preflight

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
ROOT = Path(__file__).parent.parent.parent
MODELS = ("googlenet", "resnet50", "mobilenet_v2")
TOLERANCE = 1e-2  # of the largest value: GPUs round products of float32 to TF32


def why_no_gpu() -> str:
    """Why CUDA cannot be used here; empty: it can."""
    try:
        preflight(("cuda",))
    except InputError as error:
        return str(error)
    return ""


NO_GPU = why_no_gpu()
PROVIDER = "cpu" if NO_GPU else "cuda"


def feeds_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(3)
    shapes = {
        value.name: [size if isinstance(size, int) else 1 for size in value.shape or ()]
        for value in load(path).inputs
    }
    return {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


def offload(*words: str | Path, folder: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from offload_cli.main import main; main()", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = {name: folder / f"{name}.onnx" for name in MODELS}
    for name, path in found.items():
        onnx.save(build(name), path)
    return found


def test_there_is_a_gpu() -> None:
    if NO_GPU:
        print(f"\nno GPU, so all that follows runs on the CPU: {NO_GPU}")
        pytest.skip(NO_GPU)
    found = preflight(("cuda",))
    names = {package["name"] for package in found["packages"]}
    assert "onnxruntime" not in names, "two wheels own the module onnxruntime"
    print(f"\nonnxruntime {found['versions']['onnxruntime']}, CUDA computes")


@pytest.mark.parametrize("name", MODELS)
def test_the_provider_computes_the_same_numbers(models: dict[str, Path], name: str) -> None:
    path, feeds = models[name], feeds_of(models[name])
    options = EngineOptions((PROVIDER,))
    assert PROVIDER in kernel_providers(path, feeds, options)
    for want, got in zip(
        load(path).run(None, feeds), load(path, options).run(None, feeds), strict=True
    ):
        assert np.abs(want - got).max() <= TOLERANCE * np.abs(want).max()


def test_a_profile_waits_for_the_gpu(models: dict[str, Path], tmp_path: Path) -> None:
    """A profile that timed the start of kernels only would be many times too short."""
    path, feeds = models["resnet50"], feeds_of(models["resnet50"])
    words = ("profile", path, "--provider", PROVIDER, "-o", "p.json")
    offload(*words, folder=tmp_path)
    found = load_profile(tmp_path / "p.json")
    assert found.provider == PROVIDER
    engine = load(path, EngineOptions((PROVIDER,)))
    engine.warm()
    seconds = []
    for _ in range(20):
        start_s = time.perf_counter()
        engine.run(None, feeds)  # its outputs are in the machine's memory: all is finished
        seconds.append(time.perf_counter() - start_s)
    median_s = statistics.median(seconds)
    assert median_s / 2 < found.whole_s < median_s * 2
    layers_s = sum(layer.seconds_s for layer in found.layers)
    assert median_s / 3 < layers_s < median_s * 3


def test_a_split_inference_uses_the_gpu(models: dict[str, Path], tmp_path: Path) -> None:
    path, feeds = models["googlenet"], feeds_of(models["googlenet"])
    np.savez(tmp_path / "in.npz", **feeds)  # type: ignore[arg-type]
    cut = "inception_3a/1x1/relu,inception_3a/3x3/relu,inception_3a/5x5/relu"
    cut += ",inception_3a/pool_proj/relu"
    fast = ("--device", "1e9", "--server", "1e12", "--encoding", "raw")
    offload("split", path, "-o", "b", *fast, "--cut", cut, folder=tmp_path)
    command = "from offload_cli.main import main; main()"
    words = ["serve", "b", "--listen", "127.0.0.1:0", "--provider", PROVIDER, "--format", "json"]
    server = subprocess.Popen(
        [sys.executable, "-c", command, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        head = ""
        while not head.endswith("}\n"):
            line = server.stdout.readline()
            assert line, "the server did not start"
            head += line
        told = json.loads(head)
        assert told["providers"] == [PROVIDER]
        run = ("run", "b", "--input", "in.npz", "--output", "out.npz", "--repeat", "20")
        shown = offload(*run, "--server", told["listening"], folder=tmp_path)
        print(f"\n{shown.splitlines()[0]}")
    finally:
        server.terminate()
        server.communicate(timeout=30)
    with np.load(tmp_path / "out.npz") as found:
        names = [value.name for value in load(path).outputs]
        for name, want in zip(names, load(path).run(None, feeds), strict=True):
            assert np.abs(want - found[name]).max() <= TOLERANCE * np.abs(want).max()


def test_the_rows_of_the_benchmark_that_a_server_decides() -> None:
    """Print the rows without judging them: the goals are for two CPU cores."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_runtime", "--seconds", "2"]
    done = subprocess.run(
        [*command, "--only", "tails", "--only", "batches"],
        cwd=ROOT,
        env={**os.environ, "BENCH_PROVIDERS": PROVIDER},
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"\n{done.stdout}")
    assert "tails, 16 sessions, of bare ORT" in done.stdout, done.stderr
    assert "batched tails" in done.stdout
