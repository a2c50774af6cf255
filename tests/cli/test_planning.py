"""Planning commands: results of valid options, one sentence for invalid ones."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from offload.errors import sentence
from offload_cli.main import app
from typer.testing import CliRunner, Result

from tests.cli.test_processes import SHAPE
from tests.toolkit.models import two_branches

# What is planned must not depend on how fast this machine is while it tests.
ESTIMATE = "1e9"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(done: Result) -> str:
    """The one sentence that a user reads."""
    assert done.exit_code == 1
    assert done.exception is not None
    said = sentence(done.exception)
    assert said is not None, repr(done.exception)
    assert "\n" not in said
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two models, profiles of both, one of another version, and links."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name, seed in (("net", 0), ("other", 3)):
            two_branches(folder / f"{name}.onnx", seed=seed)
            made = run("profile", folder / f"{name}.onnx", *SHAPE, "-o", folder / f"{name}.json")
            assert made.exit_code == 0, made.output
        profile = json.loads((folder / "net.json").read_text())
        (folder / "version.json").write_text(json.dumps({**profile, "format": 99}))
        link = {"format": 1, "up_bps": 1e6, "down_bps": 1e6, "up_r2": 0.5, "down_r2": 0.99}
        (folder / "unsteady.link.json").write_text(json.dumps(link))
        (folder / "version.link.json").write_text(json.dumps({**link, "format": 99}))
        yield folder


def split(home: Path, *arguments: str | Path, device: str | Path = ESTIMATE) -> Result:
    return run(
        "split", home / "net.onnx", *SHAPE, "--device", device, "--server", "1e12",
        "--format", "json", "-o", home / "made.bundle", *arguments,
    )  # fmt: skip


def planned(home: Path, *arguments: str) -> dict[str, Any]:
    """The chosen scheme's figures."""
    done = split(home, *arguments)
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)["plan"]
    found: dict[str, Any] = next(a for a in plan["alternatives"] if a["scheme"] == plan["scheme"])
    shutil.rmtree(home / "made.bundle")
    return found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "1 MB"), "no plan keeps the limits memory 1.00 MB (the least found: memory"),
        (("--deadline", "0.1 us"), "no plan keeps the limits deadline 100 ns (the least"),
        (("--energy", "0.001 mJ"), "energy needs the device's power: give --power IDLE,COMPUTE"),
        (
            ("--energy", "0.0001 mJ", "--power", "2,3,1"),
            "no plan keeps the limits energy 0.0001 mJ",
        ),
        (("--keep-input", "--scheme", "cloud"), "scheme 'cloud' does not keep the limits 1 layer"),
        (("--pin-device", "3", "--cut", "stem"), "the requested cut does not keep the limits 3"),
        (("--pin-device", "99"), "99 layers cannot be pinned: the model has 3"),
        (("--cut", "x"), "a cut at 'x' leaves the device nothing to compute"),
        (("--memory", "lots"), "size 'lots' is not understood: write it like '64 MB'"),
        (("--deadline", "soon"), "duration 'soon' is not understood: write it like '10 ms'"),
        (("--power", "1,2"), "power '1,2' is not understood"),
        (("--objective", "beauty"), "objective 'beauty' is not known: use one of latency"),
        (("--link", "unsteady.link.json"), "link is too unsteady to model (r2 = 0.50"),
        (("--link", "version.link.json"), "link file is of another version: probe the link again"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_one_sentence(
    home: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = (str(home / text) if text.endswith(".json") else text for text in arguments)
    assert refused(split(home, *given)).startswith(said)
    assert not (home / "made.bundle").exists(), "a refused wish writes nothing"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("other.json", "profile is of another model ("),
        ("version.json", "profile has format 99, expected 1: profile again"),
        ("net.onnx", "is not a profile"),
        ("nowhere.json", "does not exist: write it with `offload profile -o`"),
    ],
)
def test_a_profile_that_does_not_fit_is_one_sentence(home: Path, device: str, said: str) -> None:
    assert said in refused(split(home, device=home / device))


def test_limits_are_kept_and_change_the_plan(home: Path) -> None:
    free = planned(home)
    assert free["scheme"] == "local"
    pinned = planned(home, "--keep-input", "--objective", "throughput")
    assert pinned["device_layers"] >= 1
    watts = planned(home, "--power", "2,3,1", "--energy", "10 J", "--deadline", "10 s")
    assert 0 < watts["energy_j"] <= 10
    room = planned(home, "--memory", f"{free['memory_bytes']} B")
    assert room["memory_bytes"] <= free["memory_bytes"]


def test_the_front_trades_latency_for_throughput(home: Path) -> None:
    done = split(home, "--pareto", "--slowdown", "50", "--link", "100mbit")
    assert done.exit_code == 0, done.output
    front = json.loads(done.stdout)["pareto"]
    shutil.rmtree(home / "made.bundle")
    assert front
    assert [a["latency_s"] for a in front] == sorted(a["latency_s"] for a in front)
    assert [a["period_s"] for a in front] == sorted((a["period_s"] for a in front), reverse=True)


def test_simulate_plans_each_link_and_draws(home: Path) -> None:
    done = run(
        "simulate", home / "net.onnx", *SHAPE, "--device", ESTIMATE, "--server", "1e12",
        "--link", "1..100 Mbit/s", "--points", "3", "--slowdown", "1,2000", "--format", "json",
        "--svg", home / "chart.svg", "--html", home / "page.html",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    cells = json.loads(done.stdout)
    assert [cell["slowdown"] for cell in cells] == [1, 1, 1, 2000, 2000, 2000]
    assert [cell["rate_bps"] for cell in cells[:3]] == pytest.approx([1e6, 1e7, 1e8])
    for cell in cells:
        figures = {a["scheme"]: a["latency_s"] for a in cell["alternatives"]}
        assert figures[cell["winner"]] <= min(figures.values()) * 1.05
    assert cells[0]["winner"] == "local"
    assert cells[-1]["winner"] != "local"
    assert (home / "chart.svg").read_text().startswith("<svg")
    assert "lossless encodings" in (home / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--link", "warp"), "link 'warp' is not understood: use one of 3g, 4g, wifi"),
        (("--link", "100..1 Mbit/s"), "range '100..1 Mbit/s' must go from the slower link"),
        (("--slowdown", "fast"), "--slowdown 'fast' is not understood: write factors like 1,5,20"),
        (("--encoding", "fp16"), "--encoding fp16 loses precision, which only `split` can judge"),
    ],
)
def test_simulate_refuses_in_one_sentence(
    home: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = run(
        "simulate", home / "net.onnx", *SHAPE, "--device", ESTIMATE, "--server", "1e12",
        *arguments,
    )  # fmt: skip
    assert refused(done).startswith(said)


def test_a_profile_with_the_picture_inside_fits_the_split_with_it(home: Path) -> None:
    """The same --image on both; without it on one, the profile is of another model."""
    made = run("models", "build", "squeezenet", "-o", home / "squeeze.onnx")
    assert made.exit_code == 0, made.output
    model = home / "squeeze.onnx"
    done = run(
        "profile", model, "--image", "imagenet", "--runs", "3", "-o", home / "image.json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    simulated = ("simulate", model, "--device", home / "image.json", "--server", "1e12")
    few = ("--points", "2", "--encoding", "raw")
    fits = run(*simulated, *few, "--image", "imagenet")
    assert fits.exit_code == 0, fits.output
    without = run(*simulated, *few)
    assert "another model" in refused(without)
