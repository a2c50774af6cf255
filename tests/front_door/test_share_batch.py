"""`split --shape` with several rows, and `run`: plans that share the rows of a batch."""

from pathlib import Path

import numpy as np
import pytest
from offload.bundle.bundle import open_bundle
from offload.costs.link import parse_link
from offload_runtimes.local import open_session
from offload_runtimes.measure.split import SplitRequest
from offload_runtimes.measure.split import split as split_model
from onnx import NodeProto, helper

from tests.front_door.door import Array, Door, save, value, weight

LINK = "5 Mbit/s,1 ms"
SLOW = ("--device", "1e8", "--server", "1e10", "--encoding", "raw", "--link", LINK)
BATCH = ("--shape", "x=64x256")


def save_net(folder: Path, rows: int | str = "rows") -> str:
    """One product of matrices: 84 ms on the device, 106 ms on the link for 64 rows."""
    save(
        folder / "net.onnx",
        [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [value("x", rows, 256)],
        [value("y", rows, 256)],
        {"W": weight(256, 256)},
    )
    return "net.onnx"


def save_rows(door: Door, rows: int) -> Array:
    x = np.random.default_rng(rows).standard_normal((rows, 256)).astype(np.float32)
    np.savez(door.folder / "in.npz", x=x)
    return x


def test_split_says_how_a_batch_is_shared(door: Door) -> None:
    net = save_net(door.folder)
    split = door.json("split", net, "-o", "b", *SLOW, *BATCH)
    (batch,) = split["batch"]
    assert batch["is_shared"]
    assert batch["rows"] == sum(each["rows"] for each in batch["micro_batches"]) == 64
    assert {each["plan"] for each in batch["micro_batches"]} == {0, 1}
    assert batch["ratio"] > 1.4
    assert batch["latency_s"] == pytest.approx(batch["single_latency_s"] / batch["ratio"])
    assert split["plan"]["scheme"] == "local"
    assert door.json("inspect", "b")["batch"] == split["batch"]
    text = door.ok("inspect", "b")
    assert "a batch of 64 rows on 5 Mbit/s + 1.00 ms: " in text
    assert "x faster than plan 0 alone (84.0 ms)" in text
    assert open_bundle(door.folder / "b").rows == 64


def test_a_stream_bundle_shares_batches_too(door: Door) -> None:
    net = save_net(door.folder)
    split = door.json("split", net, "-o", "b", *SLOW, *BATCH, "--objective", "throughput")
    assert split["mix"]
    assert split["batch"][0]["is_shared"]


def test_no_share_keeps_the_best_single_plan(door: Door) -> None:
    net = save_net(door.folder)
    split = door.json("split", net, "-o", "b", *SLOW, *BATCH, "--no-share")
    assert "batch" not in split
    assert "plans" not in split
    assert open_bundle(door.folder / "b").rows == 0


@pytest.mark.parametrize("words", [("--scheme", "local"), ("--cut", "h")])
def test_a_plan_that_was_asked_for_computes_all_rows(door: Door, words: tuple[str, str]) -> None:
    assert "batch" not in door.json(
        "split", save_net(door.folder), "-o", "b", *SLOW, *BATCH, *words
    )


def test_a_fixed_number_of_rows_is_not_shared(door: Door) -> None:
    assert "batch" not in door.json("split", save_net(door.folder, 64), "-o", "b", *SLOW)


def test_a_small_gain_is_refused_and_named(door: Door) -> None:
    net = save_net(door.folder)
    slow = ("--link", "100 kbit/s,1 ms")
    split = door.json("split", net, "-o", "b", *SLOW, *BATCH, *slow)
    (batch,) = split["batch"]
    assert not batch["is_shared"]
    assert batch["micro_batches"] == []
    assert batch["latency_s"] == batch["single_latency_s"]
    assert "sharing them gains less than the prediction error" in door.ok("inspect", "b")


def test_plans_that_do_not_fit_the_memory_together_share_nothing(door: Door) -> None:
    net = save_net(door.folder)
    free = door.json("split", net, "-o", "b", *SLOW, *BATCH)["plan"]
    (local,) = (a for a in free["alternatives"] if a["scheme"] == "local")
    limit = ("--memory", f"{local['memory_bytes'] + 1000} B")
    split = door.json("split", net, "-o", "b", *SLOW, *BATCH, *limit)
    assert not split["batch"][0]["is_shared"]
    assert "plans" not in split


@pytest.mark.door
def test_run_shares_the_rows_of_a_batch(door: Door) -> None:
    door.ok("split", save_net(door.folder), "-o", "b", *SLOW, *BATCH)
    save_rows(door, 64)
    words = ("run", "b", "--input", "in.npz", "--link", LINK)
    run = door.json(*words, "--output", "shared.npz")
    assert sum(each["rows"] for each in run["micro_batches"]) == 64
    marks = [span["name"] for span in run["timeline"] if span["name"].startswith("rows ")]
    assert len(marks) >= len({each["plan"] for each in run["micro_batches"]}) > 1
    assert run["predicted_s"] is None
    alone = door.json(*words, "--output", "alone.npz", "--no-share")
    assert "micro_batches" not in alone
    shared, single = np.load(door.folder / "shared.npz"), np.load(door.folder / "alone.npz")
    np.testing.assert_allclose(shared["y"], single["y"], rtol=1e-4, atol=1e-4)
    assert "rows of the batch: " in door.ok(*words)
    save_rows(door, 1)
    assert "micro_batches" not in door.json(*words)
    door.ok("verify", "b")


@pytest.mark.door
def test_bad_batches_get_one_sentence(door: Door) -> None:
    door.ok("split", save_net(door.folder), "-o", "b", *SLOW, *BATCH)
    np.savez(door.folder / "wide.npz", x=np.ones((4, 7), np.float32))
    assert "'x'" in door.refused("run", "b", "--input", "wide.npz")
    np.savez(door.folder / "none.npz", x=np.ones((0, 256), np.float32))
    door.ok("run", "b", "--input", "none.npz", "--output", "out.npz")
    assert np.load(door.folder / "out.npz")["y"].shape == (0, 256)


@pytest.mark.door
def test_inputs_with_different_rows_run_as_without_sharing(door: Door) -> None:
    save(
        door.folder / "net.onnx",
        [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Add", ["h", "z"], ["y"])],
        [value("x", "rows", 256), value("z", "rows", 256)],
        [value("y", "rows", 256)],
        {"W": weight(256, 256)},
    )
    shapes = ("--shape", "x=64x256", "--shape", "z=64x256")
    split = door.json("split", "net.onnx", "-o", "b", *SLOW, *shapes)
    assert split["batch"][0]["rows"] == 64
    run = ("run", "b", "--input", "in.npz", "--link", LINK)
    np.savez(door.folder / "in.npz", x=np.ones((64, 256), "f4"), z=np.ones((3, 256), "f4"))
    refused = door.refused(*run)
    assert refused == door.refused(*run, "--no-share")
    assert "z" in refused or "Add" in refused
    np.savez(door.folder / "in.npz", x=np.ones((64, 256), "f4"), z=np.ones((64, 256), "f4"))
    assert "timeline" in door.json(*run)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        (helper.make_node("Softmax", ["h"], ["y"], axis=0), ("rows", 256)),
        (helper.make_node("ReduceMean", ["h"], ["y"], axes=[0], keepdims=0), (256,)),
        (helper.make_node("Transpose", ["h"], ["y"], perm=[1, 0]), (256, "rows")),
    ],
    ids=["rows mixed", "no rows", "rows elsewhere"],
)
def test_a_model_without_independent_rows_is_not_shared(
    door: Door, node: NodeProto, shape: tuple[int | str, ...]
) -> None:
    save(
        door.folder / "net.onnx",
        [helper.make_node("MatMul", ["x", "W"], ["h"]), node],
        [value("x", "rows", 256)],
        [value("y", *shape)],
        {"W": weight(256, 256)},
    )
    split = door.json("split", "net.onnx", "-o", "b", *SLOW, *BATCH)
    assert "batch" not in split


def test_the_python_functions_share_as_the_commands_do(door: Door) -> None:
    request = SplitRequest(
        door.folder / save_net(door.folder),
        parse_link(LINK),
        device=1e8,
        server=1e10,
        shapes={"x": (64, 256)},
    )
    bundle = split_model(request, door.folder / "b")
    assert bundle.rows == 64
    with open_session(bundle, link=parse_link(LINK)) as session:
        micro_batches = session.micro_batches(64)
        assert sum(each.rows for each in micro_batches) == 64
        session.run(None, {"x": save_rows(door, 64)})
        assert sum(session.counts.by_plan) == len(micro_batches)
