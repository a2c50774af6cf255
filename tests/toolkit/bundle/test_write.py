"""Bundles of one and of several plans: shared files once, damaged files refused."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from offload.bundle import weights
from offload.bundle.bundle import (
    MANIFEST,
    Bundle,
    file_digest,
    manifest_digest,
    open_bundle,
)
from offload.bundle.write import dedupe, sizes, write_bundle
from offload.errors import BundleError, InputError
from offload.graph.load import load_model
from offload.graph.read import read_graph
from offload.planning.plan import Side
from offload.planning.plan_set import BandwidthRange, PlanSet, SlowdownRanges
from onnx import TensorProto

from tests.toolkit.bundle.several import WIDTHS, funnel, ranged_over, swept

WEIGHT_BYTES = sum(4 * a * b for a, b in itertools.pairwise(WIDTHS))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return swept(tmp_path_factory.mktemp("several"))


def run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(
        zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True)
    )


def test_a_bundle_has_the_plans_of_the_sweep(bundle: Bundle) -> None:
    assert [plan.scheme for plan in bundle.plans] == ["local", "neurosurgeon", "cloud"]
    assert [r.plan for r in bundle.plan_set.ranges] == [0, 1, 2]
    assert open_bundle(bundle.path, tuple(Side)) == bundle
    assert bundle.needs_server
    assert not bundle.only(0).needs_server


def test_every_plan_computes_the_model(bundle: Bundle) -> None:
    x = np.random.default_rng(2).standard_normal((4, WIDTHS[0]), np.float32)
    want = run(bundle.path.parent / "net.onnx", {"x": x})["y"]
    for plan in bundle.plans:
        tensors = {"x": x}
        for segment in plan.segments:
            tensors.update(run(bundle.segment_path(segment.part), tensors))
        assert np.array_equal(tensors["y"], want)


def test_weights_are_stored_once(bundle: Bundle) -> None:
    stored = sum(path.stat().st_size for path in bundle.path.glob("*.weights"))
    assert stored <= WEIGHT_BYTES + 4096 * len(WIDTHS)
    assert all(path.stat().st_size < 10_000 for path in bundle.path.glob("*.onnx"))
    together_bytes, separate_bytes = sizes(bundle)
    assert together_bytes < 1.2 * WEIGHT_BYTES
    assert separate_bytes > 2.9 * WEIGHT_BYTES


def test_common_parts_are_one_file(bundle: Bundle) -> None:
    ids = [(s.id, s.part) for plan in bundle.plans for s in plan.segments]
    assert ids == [
        ("device-0", "device-0"), ("device-0", "device-1"), ("server-0", "server-0"),
        ("server-0", "server-1"),
    ]  # fmt: skip


def test_a_plan_twice_is_stored_once(tmp_path: Path) -> None:
    """Plans that differ only in the order of their steps share all parts."""
    plan = ranged_over(read_graph(load_model(funnel(tmp_path / "net.onnx")))).plans[1]
    other = replace(plan, steps=plan.steps[::-1])
    ranges = (BandwidthRange(0.0, 1e6, 0), BandwidthRange(1e6, float("inf"), 1))
    deduped = dedupe(PlanSet((plan, other), ranges))
    assert [s.part for s in deduped.plans[1].segments] == ["device-0", "server-0"]


def test_weights_stored_as_lists_of_numbers_are_shared_too(tmp_path: Path) -> None:
    path = funnel(tmp_path / "net.onnx")
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        values = np.frombuffer(tensor.raw_data, np.float32)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values.tolist())
        assert tensor.data_type == TensorProto.FLOAT
    onnx.save(proto, path)
    model = load_model(path)
    graph = read_graph(model)
    written = write_bundle(model, graph, ranged_over(graph), tmp_path / "b")
    assert sizes(written)[0] < 1.2 * WEIGHT_BYTES
    test_every_plan_computes_the_model(written)


def test_one_plan_has_one_file_and_every_bandwidth(tmp_path: Path) -> None:
    model = load_model(funnel(tmp_path / "net.onnx"))
    graph = read_graph(model)
    plan = ranged_over(graph).plans[1]
    written = write_bundle(model, graph, plan, tmp_path / "b")
    assert {file.name for file in written.files} == {
        *("plan.json", "graph.json", "device-0.onnx", "server-0.onnx")
    }
    assert written.plans == (plan,)
    assert written.plan_set.at(1.0) == written.plan_set.at(1e12) == 0


def test_a_side_needs_its_parts_of_all_plans(bundle: Bundle) -> None:
    device = {file.name for file in bundle.files if Side.DEVICE in file.sides}
    server = {file.name for file in bundle.files if Side.SERVER in file.sides}
    plans = {"plan.json", "plan-1.json", "plan-2.json"}
    assert device == plans | {"device-0.onnx", "device-1.onnx", "shared.weights"}
    assert server == plans | {"server-0.onnx", "server-1.onnx", "shared.weights"}


def test_nothing_is_left_behind_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_write_message", full)
    with pytest.raises(OSError, match="No space left"):
        swept(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx"}


def test_an_unknown_plan_is_refused(bundle: Bundle) -> None:
    for number in (-1, 3):
        with pytest.raises(InputError, match=f"no plan {number}: its plans are 0 to 2"):
            bundle.only(number)


@pytest.mark.parametrize("damage", ["gap", "plan missing", "unknown file", "sealed"])
def test_damaged_bundles_are_refused(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "b"
    shutil.copytree(bundle.path, copy)
    content = json.loads((copy / MANIFEST).read_text())
    del content["digest"]
    match damage:
        case "gap":
            content["ranges"][1]["low_bps"] += 1.0
        case "unknown file":
            content["plans"][1] = "plan-7.json"
        case "plan missing":
            (copy / "plan-1.json").unlink()
        case "sealed":
            (copy / "plan-1.json").write_text("{}")
            assert file_digest(copy / "plan-1.json") != content["files"]["plan-1.json"]["sha256"]
    manifest = {"digest": manifest_digest(content), **content}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"make the bundle again|make it again|deploy"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("shares", "first"),
    [([0.5, 0.5], 0), ([0.5, 0.4, 0.0], 0), ([0.5, 0.7, -0.2], 0), ("all", 0), ([0.5, 0.5, 0], 3)],
)
def test_damaged_shares_are_refused(
    bundle: Bundle, tmp_path: Path, shares: object, first: int
) -> None:
    """Too few shares, a sum below 1, a negative share, text; a range of an unknown plan."""
    copy = tmp_path / "b"
    shutil.copytree(bundle.path, copy)
    content = json.loads((copy / MANIFEST).read_text())
    del content["digest"]
    content["shares"] = shares
    content["ranges"][0]["plan"] = first
    (copy / MANIFEST).write_text(json.dumps({"digest": manifest_digest(content), **content}))
    with pytest.raises(BundleError, match="damaged: make the bundle again"):
        open_bundle(copy)


def test_shares_of_frames_are_kept_and_a_plan_may_have_no_range(tmp_path: Path) -> None:
    model = load_model(funnel(tmp_path / "net.onnx"))
    graph = read_graph(model)
    plans = ranged_over(graph).plans
    written = write_bundle(model, graph, PlanSet(plans, shares=(0.5, 0.3, 0.2)), tmp_path / "b")
    assert written.shares == open_bundle(tmp_path / "b").shares == (0.5, 0.3, 0.2)
    assert len(written.plans) == 3
    assert written.plan_set.at(1.0) == 0
    assert written.only(1).shares == ()
    assert write_bundle(model, graph, PlanSet(plans[:1]), tmp_path / "one").shares == ()
    assert "shares" not in json.loads((tmp_path / "one" / MANIFEST).read_text())


def slower_of(path: Path, slower: object) -> Path:
    """A bundle's folder with other slow-downs in its manifest, whose digest is right."""
    content = json.loads((path / MANIFEST).read_text())
    del content["digest"]
    content["slower"] = slower
    (path / MANIFEST).write_text(json.dumps({"digest": manifest_digest(content), **content}))
    return path


def test_ranges_for_slower_devices_are_kept(tmp_path: Path) -> None:
    model = load_model(funnel(tmp_path / "net.onnx"))
    graph = read_graph(model)
    plans = ranged_over(graph).plans[:2]
    slower = (SlowdownRanges(2.5, (BandwidthRange(0.0, math.inf, 1),)),)
    written = write_bundle(model, graph, PlanSet(plans, slower=slower), tmp_path / "b")
    assert written.plan_set.slower == open_bundle(tmp_path / "b").plan_set.slower == slower
    assert written.plan_set.at(1.0) == 0
    assert written.only(1).plan_set.slower == ()
    (right,) = json.loads((tmp_path / "b" / MANIFEST).read_text())["slower"]
    wrongs: list[object] = [
        [], [{**right, "slowdown": 0.5}], [{**right, "slowdown": "2"}], [right, right], "slow",
        [{**right, "ranges": []}], [{"slowdown": 2.5}], [7],
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(BundleError, match="damaged: make the bundle again"):
            open_bundle(slower_of(tmp_path / "b", wrong))
    assert open_bundle(slower_of(tmp_path / "b", [right])).plan_set.slower == slower


def batched(folder: Path, rows: int | str) -> Bundle:
    model = load_model(funnel(folder / "net.onnx", rows))
    graph = read_graph(model, {"x": (4, WIDTHS[0])})
    return write_bundle(model, graph, ranged_over(graph), folder / "b")


def test_rows_of_an_open_batch_may_run_together(tmp_path: Path) -> None:
    bundle = batched(tmp_path, "n")
    assert bundle.why_alone("server-0") == bundle.why_alone("server-1") == ""


def test_rows_of_a_fixed_batch_may_not_run_together(tmp_path: Path) -> None:
    assert "fixed at 4" in batched(tmp_path, 4).why_alone("server-0")


def test_a_damaged_verdict_is_refused(tmp_path: Path) -> None:
    path = batched(tmp_path, "n").path
    content = json.loads((path / MANIFEST).read_text())
    del content["digest"]
    content["files"]["server-0.onnx"]["why_alone"] = ["mixes rows"]
    (path / MANIFEST).write_text(json.dumps({"digest": manifest_digest(content), **content}))
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(path)


def test_a_file_has_the_name_that_was_checked(bundle: Bundle, tmp_path: Path) -> None:
    content = json.loads((bundle.path / MANIFEST).read_text())
    del content["digest"]
    for entry in content["files"].values():
        entry["name"] = "../outside"
    manifest = {"digest": manifest_digest(content), **content}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    for path in bundle.path.glob("plan*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert open_bundle(tmp_path).files == bundle.files
