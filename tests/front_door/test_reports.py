"""What `profile`, `split` and `run` print is what happened."""

import json

import numpy as np
from offload_runtimes.measure.profile import drift
from onnx import helper

from tests.front_door.door import ESTIMATED, Door, save, value, weight


def chain(door: Door) -> None:
    """A product large enough to take some milliseconds, a ReLU, and a small one."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["y"]),
    ]
    stored = {"A": weight(512, 512), "B": weight(512, 64, seed=1)}
    save(door.folder / "net.onnx", nodes, [value("x", 256, 512)], [value("y", 256, 64)], stored)
    np.savez(door.folder / "in.npz", x=weight(256, 512, seed=2))


def test_a_kept_profile_says_when_it_was_measured_and_is_checked(door: Door) -> None:
    chain(door)
    door.ok("profile", "net.onnx", "--runs", "3")
    (kept,) = (door.folder / "cache").rglob("profiles/*.json")
    profile = json.loads(kept.read_text())
    profile["whole_s"] *= 1000
    kept.write_text(json.dumps(profile))
    shown = door.offload("profile", "net.onnx", "--runs", "3")
    assert "measured at 20" in shown.stderr
    assert "measuring again" in shown.stderr
    assert json.loads(kept.read_text())["whole_s"] < profile["whole_s"] / 2


def test_a_profile_holds_while_a_run_takes_about_as_long() -> None:
    assert drift(0.010, 0.0119) == ""
    assert drift(0.010, 0.0081) == ""
    assert "took 10.0 ms then and takes 13.0 ms now" in drift(0.010, 0.013)
    assert drift(0.010, 0.007)
    assert drift(50e-6, 90e-6) == "", "a call of the engine varies by that much"


def test_run_predicts_only_for_the_device_and_link_of_the_plan(door: Door) -> None:
    chain(door)
    run = ("run", "b", "--input", "in.npz")
    link = ("--link", "20 Mbit/s,5 ms")
    door.ok("split", "net.onnx", "-o", "b", "--cut", "r", "--slowdown", "2", *link)
    assert door.json(*run, *link, "--slowdown", "2")["predicted_s"] > 0
    assert door.json(*run, "--slowdown", "2")["predicted_s"] is None, "no link was emulated"
    assert door.json(*run, *link)["predicted_s"] is None, "the plan is for a slower device"
    door.ok("split", "net.onnx", "-o", "b", *ESTIMATED, "--cut", "r", *link)
    shown = door.offload(*run, *link)
    assert "measured (median of 1)" in shown.stdout
    assert "predicted" not in shown.stdout


def test_a_plan_made_from_random_inputs_says_so(door: Door) -> None:
    chain(door)
    split = ("split", "net.onnx", "-o", "b", *ESTIMATED)
    assert "random inputs: give real ones" in door.json(*split)["plan"]["reason"]
    given = door.json(*split, "--calibration", "in.npz")["plan"]["reason"]
    assert "random inputs" not in given
    raw = door.json(*split, "--encoding", "raw")["plan"]["reason"]
    assert "random inputs" not in raw
