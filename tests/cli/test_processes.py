"""Commands in processes of their own: valid input gives a result, invalid input a sentence."""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.toolkit.models import two_branches

SHAPE = ("--shape", "x=4x8")


def offload(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    code = "from offload_cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its input, and a bundle cut at both branches."""
    folder = tmp_path_factory.mktemp("home")
    two_branches(folder / "net.onnx")
    np.savez(folder / "in.npz", x=np.random.default_rng(0).random((4, 8), dtype=np.float32))
    made = offload(
        "split", folder / "net.onnx", *SHAPE, "--cut", "left,right", "-o", folder / "net.bundle",
        "--format", "json", cache=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["plan"]["scheme"] == "opss"
    return folder


def test_inspect_lists_what_can_be_cut(home: Path) -> None:
    shown = offload("inspect", home / "net.onnx", *SHAPE, "--format", "json", cache=home)
    layers = json.loads(shown.stdout)["layers"]
    makes = [name for layer in layers for name in layer["outputs"]]
    assert makes == ["stem", "left", "y"], "onnxruntime fuses right and sum into one kernel"


def test_profile_is_measured_once_and_kept(home: Path) -> None:
    for _ in range(2):
        shown = offload(
            "profile", home / "net.onnx", *SHAPE, "--format", "json", "-o", home / "me.json",
            cache=home,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
    assert "profiles: measured at" in shown.stderr
    assert json.loads(shown.stdout) == json.loads((home / "me.json").read_text())


def test_run_equals_plain_onnxruntime_bit_by_bit(home: Path) -> None:
    ran = offload(
        "run", home / "net.bundle", "--input", home / "in.npz", "--output", home / "out.npz",
        "--no-optimize", "--svg", home / "run.svg", "--trace", home / "run.json",
        "--format", "json", cache=home,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lanes = {span["lane"] for span in json.loads(ran.stdout)["timeline"]}
    assert {"device", "uplink", "server"} <= lanes
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    whole = ort.InferenceSession(home / "net.onnx", options)
    expected = whole.run(None, {"x": np.load(home / "in.npz")["x"]})[0]
    np.testing.assert_array_equal(np.load(home / "out.npz")["y"], expected)
    assert (home / "run.svg").read_text().startswith("<svg")


def test_deploy_serve_probe_run_in_processes_of_their_own(home: Path, tmp_path: Path) -> None:
    assert offload("deploy", home / "net.bundle", tmp_path / "pi", "--side", "device", cache=home)
    assert offload("deploy", home / "net.bundle", tmp_path / "hub", "--side", "server", cache=home)
    code = "from offload_cli.main import main; main()"
    serve = ["serve", str(tmp_path / "hub/current"), "--listen", "127.0.0.1:0", "--format", "json"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *serve], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        ready = "".join(iter(server.stdout.readline, "}\n")) + "}"
        address = json.loads(ready)["listening"]
        ran = offload(
            "run", tmp_path / "pi/current", "--input", home / "in.npz",
            "--output", tmp_path / "out.npz", "--server", address, cache=home,
        )  # fmt: skip
        busy = offload("serve", home / "net.bundle", "--listen", address, cache=home)
        server.terminate()
        assert server.wait(30) == 0, "SIGTERM must drain and exit 0"
    assert ran.returncode == 0, ran.stderr
    assert np.load(tmp_path / "out.npz")["y"].shape == (4, 8)
    assert_one_sentence(busy, address.rpartition(":")[2])


def test_serve_tells_which_parts_batch(home: Path) -> None:
    """Made from a file with an open first axis, by `split --shape`."""
    code = "from offload_cli.main import main; main()"
    words = ["serve", str(home / "net.bundle"), "--listen", "127.0.0.1:0", "--batch", "4", "--log"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stdout.readline().startswith("serving ")
        server.terminate()
        _, said = server.communicate(timeout=60)
        assert server.returncode == 0, said
    batching = [json.loads(line) for line in said.splitlines() if '"batching"' in line]
    assert [(row["part"], row["batched"]) for row in batching] == [("server-0", True)]
    assert "runs each frame alone" not in said


def test_schedule_reads_the_bundles_own_instance(home: Path) -> None:
    shown = offload("schedule", home / "net.bundle", "--format", "json", cache=home)
    answer = json.loads(shown.stdout)
    assert answer["status"] == "optimal"
    assert answer["lower_bound_s"] == pytest.approx(answer["makespan_s"])
    assert len(answer["order"]) == 3


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "{}/none.onnx"], ["none.onnx", "does not exist"]),
        (["inspect", "{}/junk.onnx"], ["junk.onnx", "not an ONNX model"]),
        (["split", "{}/net.onnx", "-o", "{}/a", *SHAPE, "--cut", "lefft"], ["lefft", "'left'"]),
        (
            ["split", "{}/net.onnx", "-o", "{}/a"],
            ["input 'x' has the dynamic axis 0 (n)", "--shape x=1x8"],
        ),
        (["split", "{}/net.onnx", "-o", "{}/a", *SHAPE, "--link", "warp"], ["warp", "wifi"]),
        (["split", "{}/net.onnx", "-o", "{}/a", *SHAPE, "--scheme", "x"], ["scheme 'x'", "auto"]),
        (["split", "{}/net.onnx", "-o", "{}/a", "--shape", "x"], ["--shape 'x'"]),
        (["split", "{}/net.onnx", "-o", "{}/no/a", *SHAPE], ["no does not exist"]),
        (["split", "{}/net.onnx", "-o", "{}", *SHAPE], ["not a bundle"]),
        (["run", "{}/net.bundle", "--input", "{}/none.npz"], ["none.npz", "does not exist"]),
        (["run", "{}/net.bundle", "--input", "{}/junk.onnx"], ["not an .npz"]),
        (["run", "{}/net.bundle", "--input", "{}/name.npz"], ["no input 'wrong'"]),
        (["run", "{}/net.bundle", "--input", "{}/shape.npz"], ["'x'", "float32", "8"]),
        (["run", "{}/net.bundle", "--input", "{}/dtype.npz"], ["'x'", "float64"]),
        (["run", "{}/nothing", "--input", "{}/in.npz"], ["not a bundle"]),
        (["run", "{}/bad.bundle", "--input", "{}/in.npz"], ["deploy it again"]),
        (["serve", "{}/bad.bundle"], ["deploy it again"]),
        (["probe", "127.0.0.1:{port}"], ["127.0.0.1:", "cannot be reached"]),
        (
            ["run", "{}/net.bundle", "--input", "{}/in.npz", "--server", "127.0.0.1:{port}"],
            ["127.0.0.1:", "cannot be reached"],
        ),
        (["schedule", "{}/none.json"], ["none.json"]),
    ],
)
def test_bad_input_is_one_sentence(home: Path, arguments: Sequence[str], words: list[str]) -> None:
    prepare_bad_files(home)
    before = {path.name for path in home.iterdir()}
    port = str(free_port())
    filled = [text.replace("{port}", port).replace("{}", str(home)) for text in arguments]
    assert_one_sentence(offload(*filled, cache=home), *words)
    assert {path.name for path in home.iterdir()} == before, "something half-written was left"


def prepare_bad_files(home: Path) -> None:
    (home / "junk.onnx").write_bytes(b"\xff\xfejunk")
    np.savez(home / "name.npz", wrong=np.zeros((4, 8), np.float32))
    np.savez(home / "shape.npz", x=np.zeros((4, 9), np.float32))
    np.savez(home / "dtype.npz", x=np.zeros((4, 8), np.float64))
    bad = home / "bad.bundle"
    if not bad.exists():
        bad.mkdir()
        for path in (home / "net.bundle").iterdir():
            data = bytearray(path.read_bytes())
            if path.name == "server-0.onnx":
                data[-1] ^= 1
            (bad / path.name).write_bytes(data)


def test_server_without_the_bundle_says_so(home: Path, tmp_path: Path) -> None:
    made = offload(
        "split", home / "net.onnx", *SHAPE, "--cut", "stem", "-o", tmp_path / "other.bundle",
        cache=home,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    code = "from offload_cli.main import main; main()"
    serve = ["serve", str(home / "net.bundle"), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *serve], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        address = server.stdout.readline().split()[-1]
        ran = offload(
            "run", tmp_path / "other.bundle", "--input", home / "in.npz", "--server", address,
            cache=home,
        )  # fmt: skip
        server.terminate()
    assert_one_sentence(ran, address)
