"""A GPU server: the provider computes, its numbers are right, profiles and splits use it.

Run by `make test-gpu`. Where no GPU is found, the same steps run on the CPU, so that all but the
hardware is checked, and the first test says so by being skipped.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from offload.costs.profile import load_profile
from offload.errors import InputError
from offload_models.zoo import build
from offload_runtimes import OffloadSession
from offload_runtimes.engine import EngineOptions, load
from offload_runtimes.engine.profiling import kernel_providers
from offload_runtimes.installation import preflight
from offload_runtimes.serving.warm_up import is_slowed_by_changes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
ROOT = Path(__file__).parent.parent.parent
MODELS = ("googlenet", "resnet50", "mobilenet_v2")
TOLERANCE = 1e-3  # largest difference, relative to the largest value


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


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[dict[str, Any]]:
    """`offload serve b` on the provider: what it prints when ready; its log is in `log`."""
    command = "from offload_cli.main import main; main()"
    words = ["serve", "b", "--listen", "127.0.0.1:0", "--provider", PROVIDER, "--format", "json"]
    with (folder / "log").open("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", command, *words, *more],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert server.stdout is not None
            head = ""
            while not head.endswith("}\n"):
                line = server.stdout.readline()
                assert line, f"the server did not start: {(folder / 'log').read_text()}"
                head += line
            yield json.loads(head)
        finally:
            server.terminate()
            server.communicate(timeout=30)


def median_ms(run: Callable[[], object], count: int = 30) -> float:
    seconds = []
    for _ in range(count):
        start_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start_s)
    return 1e3 * statistics.median(seconds)


def close(want: Sequence[Any], got: Sequence[Any]) -> None:
    for one, other in zip(want, got, strict=True):
        assert np.abs(one - other).max() <= TOLERANCE * np.abs(one).max()


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
    with serving(tmp_path) as told:
        assert told["providers"] == [PROVIDER]
        run = ("run", "b", "--input", "in.npz", "--output", "out.npz", "--repeat", "20")
        shown = offload(*run, "--server", told["listening"], folder=tmp_path)
        print(f"\n{shown.splitlines()[0]}")
    with np.load(tmp_path / "out.npz") as found:
        names = [value.name for value in load(path).outputs]
        for name, want in zip(names, load(path).run(None, feeds), strict=True):
            assert np.abs(want - found[name]).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize("name", MODELS)
def test_predictions_with_a_gpu_server(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Profile, split, serve and run as a user would; print predicted and measured latencies.

    The device is one core of this machine, made ten times slower; the links are emulated.
    """
    path, feeds = models[name], feeds_of(models[name])
    np.savez(tmp_path / "in.npz", **feeds)  # type: ignore[arg-type]
    offload("profile", path, "--threads", "1", "-o", "device.json", folder=tmp_path)
    offload("profile", path, "--provider", PROVIDER, "-o", "server.json", folder=tmp_path)
    profiles = ("--device", "device.json", "--server", "server.json")
    want = load(path).run(None, feeds)
    print(f"\n{name}: {1e3 * load_profile(tmp_path / 'server.json').whole_s:.2f} ms on the server")
    for link in ("4g", "wifi", "100mbit"):
        emulated = ("--link", link, "--slowdown", "10")
        offload("split", path, "-o", "b", *profiles, *emulated, folder=tmp_path)
        with serving(tmp_path) as told:
            run = ("run", "b", "--input", "in.npz", "--output", "out.npz", "--repeat", "9")
            to = ("--threads", "1", "--server", told["listening"], "--format", "json")
            found = json.loads(offload(*run, *to, *emulated, folder=tmp_path))
        with np.load(tmp_path / "out.npz") as answer:
            close(want, [answer[value.name] for value in load(path).outputs])
        lanes = sorted({span["lane"] for span in found["timeline"]})
        predicted_ms, measured_ms = 1e3 * found["predicted_s"], 1e3 * found["latency_s"]
        print(f"{link}: {predicted_ms:.1f} ms predicted, {measured_ms:.1f} ms measured, {lanes}")


def test_the_number_of_a_gpu(models: dict[str, Path]) -> None:
    path, feeds = models["mobilenet_v2"], feeds_of(models["mobilenet_v2"])
    with pytest.raises(InputError, match=r"give the number of a GPU"):
        load(path, EngineOptions(("cuda:first",)))
    with pytest.raises(InputError, match=re.escape(NO_GPU) or "has no GPU 99"):
        load(path, EngineOptions(("cuda:99",)))
    engine = load(path, EngineOptions(("cpu" if NO_GPU else "cuda:0",)))
    assert engine.provider == PROVIDER
    close(load(path).run(None, feeds), engine.run(None, feeds))


def test_bound_tensors_against_unbound_ones(models: dict[str, Path], tmp_path: Path) -> None:
    """Print what IOBinding gains: for one segment, and for two in sequence. Nothing is judged.

    The server does not bind: its plans have one server segment, whose inputs come from the link
    and whose outputs leave by it. If the rows of one segment differ by more than a few per cent on
    a GPU, or plans with several segments become common, that decision is to be made again.
    """
    path, feeds, cut = models["resnet50"], feeds_of(models["resnet50"]), "layer2/3/relu"
    parts = onnx.utils.Extractor(onnx.load(path))
    for name, ends in (("head", (["image"], [cut])), ("tail", ([cut], ["logits"]))):
        onnx.save(parts.extract_model(*ends), tmp_path / f"{name}.onnx")
    whole, head, tail = (
        session_of(each) for each in (path, tmp_path / "head.onnx", tmp_path / "tail.onnx")
    )
    image = feeds["image"]

    def bound(session: ort.InferenceSession, value: Any, where: str) -> ort.OrtValue:
        binding = session.io_binding()
        name = session.get_inputs()[0].name
        if isinstance(value, ort.OrtValue):
            binding.bind_ortvalue_input(name, value)
        else:
            binding.bind_cpu_input(name, value)
        binding.bind_output(session.get_outputs()[0].name, where)
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def on_the_way(where: str) -> Any:
        return bound(tail, bound(head, image, where), "cpu").numpy()

    ways: dict[str, Callable[[], Any]] = {
        "one segment, run": lambda: whole.run(None, {"image": image})[0],
        "one segment, bound": lambda: bound(whole, image, "cpu").numpy(),
        "two segments, run": lambda: tail.run(None, {cut: head.run(None, {"image": image})[0]})[0],
        "two segments, the tensor between stays": lambda: on_the_way(PROVIDER),
    }
    for run in ways.values():
        close([load(path).run(None, feeds)[0]], [run()])
    rounds = [{name: median_ms(run, 10) for name, run in ways.items()} for _ in range(3)]
    print()
    for name in ways:
        print(f"{name}: {statistics.median(each[name] for each in rounds):.2f} ms")


def session_of(path: Path) -> ort.InferenceSession:
    exact = ("CUDAExecutionProvider", {"use_tf32": 0})
    return ort.InferenceSession(path, providers=["CPUExecutionProvider" if NO_GPU else exact])


@pytest.fixture(scope="module")
def open_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open") / "net.onnx"
    onnx.save(build("mobilenet_v2", batch="n"), path)
    return path


def test_the_first_run_of_a_shape(open_batch: Path) -> None:
    """Print what warm-up saves, and what a change of rows costs after it. Nothing is judged."""
    engine, rng = load(open_batch, EngineOptions((PROVIDER,))), np.random.default_rng(3)
    images = {n: rng.standard_normal((n, 3, 224, 224)).astype(np.float32) for n in (1, 8)}

    def ms(rows: int) -> float:
        return median_ms(lambda: engine.run(None, {"image": images[rows]}), 1)

    print()
    for rows in (1, 1, 8, 8, 1, 1, 8, 8):
        print(f"{rows} rows: {ms(rows):.2f} ms")
    slowed = is_slowed_by_changes(engine, {"image": (1, 3, 224, 224)}, 8, 5.0)
    print(f"batches of this server are {'padded' if slowed else 'not padded'}")
    close(load(open_batch).run(None, {"image": images[8]}), engine.run(None, {"image": images[8]}))


def test_workers_at_once(models: dict[str, Path]) -> None:
    """One session runs on several threads: right answers, and the rate is printed."""
    path = models["mobilenet_v2"]
    engine, rng = load(path, EngineOptions((PROVIDER,), threads=1)), np.random.default_rng(5)
    inputs = [rng.standard_normal((1, 3, 224, 224)).astype(np.float32) for _ in range(8)]
    wanted = [load(path).run(None, {"image": image}) for image in inputs]

    def warm(all_are_here: threading.Barrier) -> None:
        all_are_here.wait()
        engine.warm()

    print()
    for workers in (1, 2, 4):
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(warm, workers * [threading.Barrier(workers)]))
            start_s = time.perf_counter()
            found = list(pool.map(lambda image: engine.run(None, {"image": image}), 10 * inputs))
            took_s = time.perf_counter() - start_s
        for want, got in zip(10 * wanted, found, strict=True):
            close(want, got)
        print(f"{workers} workers: {len(found) / took_s:.0f} inferences/s")


def test_batches_of_a_gpu_server(open_batch: Path, tmp_path: Path) -> None:
    """Eight devices at once through `serve --batch 8 --workers 2`: each gets its own answer."""
    fast = ("--device", "1e6", "--server", "1e12", "--encoding", "raw", "--scheme", "cloud")
    shape = ("--shape", "image=1x3x224x224", "--no-share")
    offload("split", open_batch, "-o", "b", *fast, *shape, folder=tmp_path)
    rng = np.random.default_rng(7)
    images = [rng.standard_normal((1, 3, 224, 224)).astype(np.float32) for _ in range(8)]
    more = ("--batch", "8", "--batch-wait", "0.05", "--workers", "2", "--log")
    with serving(tmp_path, *more) as told:

        def run(image: Any) -> tuple[Any, float]:
            with OffloadSession(tmp_path / "b", told["listening"]) as session:
                start_s = time.perf_counter()
                answers = [session.run(None, {"image": image})[0] for _ in range(5)]
                return answers, time.perf_counter() - start_s

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(run, images))
    whole = load(open_batch)
    for image, (answers, _) in zip(images, found, strict=True):
        want = whole.run(None, {"image": image})[0]
        for answer in answers:
            close([want], [answer])
    lines = (tmp_path / "log").read_text().splitlines()
    warmed = [line for line in lines if '"warmed up"' in line]
    assert bool(warmed) == (not NO_GPU), lines
    print(f"\n5 runs of each of 8 devices: {max(took_s for _, took_s in found):.2f} s; {warmed}")


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
