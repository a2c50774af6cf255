"""A bundle of several plans for a range of links, in every command from `split` to `run`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload.errors import OffloadError
from offload_cli.main import app
from typer.testing import CliRunner, Result

from tests.toolkit.bundle.several import WIDTHS, funnel

RATES = "10 kbit/s..100 Mbit/s"
SLOW = ("--device", "1e6", "--server", "1e9")  # FLOP/s: on the device alone it takes 0.2 s


def offload(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def refusal(done: Result) -> str:
    assert isinstance(done.exception, OffloadError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def answer(*arguments: str | Path) -> Any:
    shown = offload(*arguments, "--format", "json")
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    funnel(folder / "net.onnx")
    x = np.random.default_rng(0).random((4, WIDTHS[0]), np.float32)
    np.savez(folder / "in.npz", x=x)
    made = answer(
        "split", folder / "net.onnx", *SLOW, "--link", RATES, "--points", "9", "-o", folder / "b"
    )
    assert len(made["plans"]) == len(made["ranges"]) == 3
    assert made["plan"] == made["plans"][0]
    assert made["together_bytes"] < 0.5 * made["separate_bytes"]
    assert (made["ranges"][0]["low_bps"], made["ranges"][-1]["high_bps"]) == (0, None)
    return folder


def test_split_shows_when_each_is_followed(home: Path, tmp_path: Path) -> None:
    shown = offload(
        "split", home / "net.onnx", *SLOW, "--link", RATES, "--points", "9", "-o", tmp_path / "b"
    )
    assert "3 plans, changing at" in shown.stdout
    assert "below" in shown.stdout
    assert "together" in shown.stdout
    one = answer(
        "split", home / "net.onnx", *SLOW, "--link", RATES, "--points", "9", "--worth", "1e6",
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert "plans" not in one, "one plan is nearly as good everywhere"


def test_inspect_and_verify_and_schedule_know_all(home: Path) -> None:
    assert len(answer("inspect", home / "b")["plans"]) == 3
    text = offload("inspect", home / "b").stdout
    assert all(f"plan {number}, made for" in text for number in range(3))
    assert "segments of 3 plans ran here" in offload("verify", home / "b").stdout
    assert answer("verify", home / "b")["segments"] == 4
    assert answer("schedule", home / "b", "--plan", "1")["order"] == ["product0"]
    wrong = offload("schedule", home / "b", "--plan", "3")
    assert refusal(wrong) == "b has no plan 3: its plans are 0 to 2"


def test_encode_report_takes_the_first_that_sends_or_the_one_asked_for(home: Path) -> None:
    first = answer("encode-report", home / "b")["tensors"]
    assert [tensor["tensor"] for tensor in first] == ["m0"]
    asked = answer("encode-report", home / "b", "--plan", "2")["tensors"]
    assert [tensor["tensor"] for tensor in asked] == ["x"]
    none = offload("encode-report", home / "b", "--plan", "0")
    assert "sends nothing up" in refusal(none)


def test_run_says_which_plan_was_followed(home: Path) -> None:
    ran = answer(
        "run", home / "b", "--input", home / "in.npz", "--repeat", "3", "--trace", home / "t.json"
    )
    assert ran["plan"] == 2, "within one process the link is fast"
    assert ran["link"]["up_bps"] > 1e6
    assert ran["switches"] == []
    assert ran["predicted_s"] is None, "it was planned for a slower device"
    fixed = answer("run", home / "b", "--input", home / "in.npz", "--plan", "1")
    assert (fixed["plan"], fixed["link"]) == (1, None)
    assert "plan 2, link" in offload("run", home / "b", "--input", home / "in.npz").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--link", "100..1 Mbit/s"], "must go from the slower link to the faster one"),
        (["--link", RATES, "--pareto"], "--pareto is for one link"),
        (["--link", RATES, "--objective", "energy", "--power", "1,1,1"], "one link"),
        (["--link", RATES, "--deadline", "1 ms"], "on a link of 10 kbit/s"),
    ],
)
def test_bad_input_is_one_sentence(
    home: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    shown = offload("split", home / "net.onnx", *SLOW, *arguments, "-o", tmp_path / "b")
    assert said in refusal(shown)
    assert not (tmp_path / "b").exists()
