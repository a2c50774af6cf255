"""A more complex plan must gain more than the prediction error."""

from onnx import helper

from tests.front_door.door import Door, save, value, weight


def two_branches(door: Door) -> None:
    """Two equal branches over inputs of their own, joined by a smaller matrix product."""
    nodes = [
        helper.make_node("MatMul", ["a", "A"], ["left"]),
        helper.make_node("MatMul", ["b", "B"], ["right"]),
        helper.make_node("Concat", ["left", "right"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "C"], ["y"]),
    ]
    stored = {
        "A": weight(1024, 256),
        "B": weight(1024, 256, seed=1),
        "C": weight(512, 320, seed=2),
    }
    inputs = [value("a", 64, 1024), value("b", 64, 1024)]
    save(door.folder / "net.onnx", nodes, inputs, [value("y", 64, 320)], stored)


def planned(door: Door, link: str) -> tuple[str, str, float]:
    """Scheme and reason of the plan, and what the best scheme gains over LO, CO and PO."""
    speeds = ("--device", "1e9", "--server", "1e11", "--encoding", "raw")
    plan = door.json("split", "net.onnx", "-o", "b", *speeds, "--link", link)["plan"]
    latency_s = {row["scheme"]: row["latency_s"] for row in plan["alternatives"]}
    simple_s = min(latency_s[name] for name in ("local", "cloud", "partition"))
    return plan["scheme"], plan["reason"], 1 - min(latency_s.values()) / simple_s


def test_an_overlap_that_gains_little_is_left_out_and_named(door: Door) -> None:
    two_branches(door)
    scheme, reason, gain = planned(door, "43 Mbit/s,1 ms")
    assert 0.005 < gain < 0.08
    assert scheme == "local"
    assert "within the prediction error" in reason
    assert "(opss)" in reason or "(joint)" in reason


def test_an_overlap_that_gains_much_is_chosen(door: Door) -> None:
    two_branches(door)
    scheme, _, gain = planned(door, "100 Mbit/s,1 ms")
    assert gain > 0.1
    assert scheme in ("opss", "joint")
