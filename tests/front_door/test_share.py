"""`split --objective throughput`: plans that share the frames of a stream."""

import json

import numpy as np
import pytest
from offload.bundle.bundle import open_bundle
from offload.costs.link import parse_link
from offload.planning.problem import Constraints, Objective
from offload_runtimes.measure.split import SplitRequest
from offload_runtimes.measure.split import split as split_model
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight

LINK = "50 Mbit/s,1 ms"
STREAM = ("--objective", "throughput", "--encoding", "raw", *ESTIMATED)


@pytest.fixture
def net(door: Door) -> str:
    """One product of matrices: 8.4 ms on the device, 11.5 ms on the link."""
    save(
        door.folder / "net.onnx",
        [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [value("x", 64, 256)],
        [value("y", 64, 256)],
        {"W": weight(256, 256)},
    )
    np.savez(door.folder / "in.npz", x=np.ones((64, 256), np.float32))
    return "net.onnx"


def test_plans_share_the_frames_where_that_gains_much(door: Door, net: str) -> None:
    split = door.json("split", net, "-o", "b", "--link", LINK, *STREAM)
    shares = split["mix"]["shares"]
    (figures,) = split["mix"]["links"]
    assert [plan["scheme"] for plan in split["plans"]] == ["local", "cloud"]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.3
    assert figures["ratio"] > 1.5
    assert figures["frames_per_s"] == pytest.approx(
        figures["ratio"] * figures["single_frames_per_s"]
    )
    assert f"{figures['frames_per_s']:.3g} frames/s" in split["plan"]["reason"]
    assert "no mix of plans gives more" in split["plan"]["reason"]
    bundle = open_bundle(door.folder / "b")
    assert bundle.shares == tuple(shares)
    assert json.loads((bundle.path / "manifest.json").read_text())["shares"] == shares


def test_inspect_shows_the_shares(door: Door, net: str) -> None:
    split = door.json("split", net, "-o", "b", "--link", LINK, *STREAM)
    assert door.json("inspect", "b")["mix"] == split["mix"]
    text = door.ok("inspect", "b")
    assert "of the frames take plan 0 (local)" in text
    assert "shares of a stream's frames" in text


@pytest.mark.door
def test_one_inference_and_one_plan_run_as_before(door: Door, net: str) -> None:
    door.ok("split", net, "-o", "b", "--link", LINK, *STREAM)
    with door.serving("b") as address:
        for number in ("0", "1"):
            run = ("run", "b", "--input", "in.npz", "--server", address, "--plan", number)
            assert door.json(*run)["plan"] == int(number)
        door.ok("run", "b", "--input", "in.npz", "--server", address, "--repeat", "3")
    door.ok("verify", "b")


def test_without_sharing_the_bundle_has_the_best_single_plan(door: Door, net: str) -> None:
    shared = door.json("split", net, "-o", "b", "--link", LINK, *STREAM)
    alone = door.json("split", net, "-o", "one", "--link", LINK, *STREAM, "--no-share")
    assert "mix" not in alone
    assert "plans" not in alone
    assert shared["plan"]["reason"].startswith(alone["plan"]["reason"])
    assert shared["plan"]["steps"] == alone["plan"]["steps"]


@pytest.mark.parametrize(
    "words",
    [("--objective", "latency"), ("--scheme", "cloud"), ("--cut", "h")],
)
def test_a_plan_that_was_asked_for_takes_all_frames(
    door: Door, net: str, words: tuple[str, str]
) -> None:
    assert "mix" not in door.json("split", net, "-o", "b", "--link", LINK, *STREAM, *words)


def test_a_gain_within_the_prediction_error_is_refused_and_named(door: Door, net: str) -> None:
    slow = ("--link", "1 Mbit/s,1 ms", "--worth", "0")
    split = door.json("split", net, "-o", "b", *STREAM, *slow)
    assert "mix" not in split
    assert "within the prediction error: this plan takes all frames" in split["plan"]["reason"]
    less = door.json("split", net, "-o", "b", *STREAM, "--link", "4 Mbit/s,1 ms", "--worth", "0.2")
    assert "mix" not in less
    assert "too little for another plan: this plan takes all" in less["plan"]["reason"]


def test_plans_that_do_not_fit_the_memory_together_are_refused_and_named(
    door: Door, net: str
) -> None:
    free = door.json("split", net, "-o", "b", "--link", LINK, *STREAM)["plan"]
    (local,) = (a for a in free["alternatives"] if a["scheme"] == "local")
    limit = ("--memory", f"{local['memory_bytes'] + 1000} B")
    split = door.json("split", net, "-o", "b", "--link", LINK, *STREAM, *limit)
    assert "mix" not in split
    assert "The plans of a faster mix need " in split["plan"]["reason"]
    assert "this plan takes all frames" in split["plan"]["reason"]
    said = door.refused("split", net, "-o", "none", "--link", LINK, *STREAM, "--memory", "1 MB")
    assert "no plan keeps the limits memory 1.00 MB" in said
    assert not (door.folder / "none").exists()


@pytest.mark.door
def test_over_a_range_few_plans_share_the_frames_of_every_link(door: Door, net: str) -> None:
    links = ("--link", "5..500 Mbit/s", "--points", "7")
    split = door.json("split", net, "-o", "b", *links, *STREAM)
    assert [plan["scheme"] for plan in split["plans"]] == ["local", "cloud"]
    assert sum(split["mix"]["shares"]) == pytest.approx(1)
    assert [r["plan"] for r in split["ranges"]] == [0, 1]
    assert all(figures["ratio"] >= 1 for figures in split["mix"]["links"])
    text = door.ok("inspect", "b")
    assert "2 plans that share a stream's frames, changing at" in text
    limited = door.json("split", net, "-o", "b", *links, *STREAM, "--deadline", "1 s")
    assert "mix" not in limited


def test_the_python_function_shares_as_the_command_does(door: Door, net: str) -> None:
    request = SplitRequest(
        door.folder / net,
        parse_link(LINK),
        device=1e9,
        server=1e11,
        constraints=Constraints(Objective.THROUGHPUT),
    )
    bundle = split_model(request, door.folder / "b")
    assert len(bundle.plans) == len(bundle.shares) == 2


def test_run_shares_the_frames_of_a_stream(door: Door, net: str) -> None:
    door.ok("split", net, "-o", "b", "--link", LINK, *STREAM)
    emulated = ("--link", LINK, "--slowdown", "20")
    words = ("run", "b", "--input", "in.npz", *emulated)
    run = door.json(*words, "--stream", "--repeat", "40", "--output", "out.npz")
    assert run["frames"] == sum(run["by_plan"]) == 40
    assert run["frames_per_s"] > 0
    alone = door.json(*words, "--output", "alone.npz")
    assert len(alone["latencies_s"]) == 1
    shared, single = np.load(door.folder / "out.npz"), np.load(door.folder / "alone.npz")
    np.testing.assert_array_equal(shared["y"], single["y"])
    assert "frames/s in a stream of 3 frames" in door.ok(*words, "--stream", "--repeat", "3")


def test_a_stream_has_no_chart(door: Door, net: str) -> None:
    door.ok("split", net, "-o", "b", "--link", LINK, *STREAM)
    words = ("run", "b", "--input", "in.npz")
    assert "leave out --on, --svg" in door.refused(*words, "--stream", "--svg", "x.svg")
    assert "give --stream, too" in door.refused(*words, "--window", "3")
