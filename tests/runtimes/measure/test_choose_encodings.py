"""What is allowed is measured: kept where the outputs stay near, else given up, and said so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.encodings import ENCODINGS, EncodingPolicy
from offload.errors import InputError
from offload.planning.plan import Plan
from offload.planning.plan_set import PlanSet
from offload_cli.main import app
from offload_runtimes.engine import load
from offload_runtimes.measure.accuracy import accuracy, change, ranks
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.choose_encodings import EncodingSelector, judged_by
from onnx import TensorProto, helper
from typer.testing import CliRunner

from tests.runtimes.measure.convnet import PLAIN, Net, build, inputs, net

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Net:
    return net(tmp_path_factory.mktemp("net"))


def chosen(
    convnet: Net,
    tolerance: float | None = None,
    floor: float | None = None,
    labels: tuple[int, ...] = (),
) -> Plan:
    allowance = EncodingPolicy(tuple(ENCODINGS.values()), tolerance, floor, Path("given"))
    chooser = EncodingSelector(convnet.model, convnet.graph, allowance, PLAIN)
    calibration = Calibration(convnet.calibration.feeds, labels)
    return chooser.within(convnet.plan, calibration, convnet.catalogue)


def test_a_wide_tolerance_takes_what_is_smallest(convnet: Net) -> None:
    plan = chosen(convnet, 0.1)
    assert plan.uploads[0].encoding.startswith("uint")
    assert "Lossy: 't' as uint" in plan.reason


def test_a_middling_tolerance_takes_float16(convnet: Net) -> None:
    plan = chosen(convnet, 3e-4)
    assert plan.uploads[0].encoding.startswith("fp16")


def test_a_class_is_judged_by_its_scores(tmp_path: Path) -> None:
    proto = build()
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["best"], "argmax", axis=1))
    proto.graph.node.append(helper.make_node("Squeeze", ["best"], ["class"], "squeeze"))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("class", TensorProto.INT64, []))
    onnx.save(proto, tmp_path / "class.onnx")
    classes = net(tmp_path, path=tmp_path / "class.onnx")
    plan = chosen(classes, 3e-4)  # what keeps the class would be smaller still
    assert plan.uploads[0].encoding.startswith("fp16")
    assert judged_by(classes.graph, plan) == {"server-0": ("y",)}


@pytest.mark.parametrize("tolerance", [0.0, 1e-9])
def test_a_tolerance_that_nothing_meets_falls_back_and_says_so(
    convnet: Net, tolerance: float
) -> None:
    plan = chosen(convnet, tolerance)
    assert all(ENCODINGS[send.encoding].is_lossless for send in plan.uploads)
    assert "No lossy encoding that was tried keeps the outputs within" in plan.reason
    assert "all is lossless" in plan.reason


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (3, "output 'y' is the same on all 3 calibration inputs"),
        (1, "output 'y' is the same on the only calibration input"),
    ],
)
def test_outputs_that_do_not_differ_prove_nothing(convnet: Net, count: int, sentence: str) -> None:
    same = Calibration(({"x": np.zeros_like(inputs(1)[0]["x"])},) * count)
    allowance = EncodingPolicy(tuple(ENCODINGS.values()), 0.1, None, Path("given"))
    chooser = EncodingSelector(convnet.model, convnet.graph, allowance, PLAIN)
    plan = chooser.within(convnet.plan, same, convnet.catalogue)
    assert sentence in plan.reason
    assert all(ENCODINGS[send.encoding].is_lossless for send in plan.uploads)


def labels_of(convnet: Net) -> tuple[int, ...]:
    assert convnet.model.path is not None
    engine = load(convnet.model.path, PLAIN)
    return tuple(int(engine.run(None, f)[0].argmax()) for f in convnet.calibration.feeds)


def test_a_floor_counts_right_labels(convnet: Net) -> None:
    right = labels_of(convnet)
    plan = chosen(convnet, floor=1.0, labels=right)
    assert "100.00% of the labels right" in plan.reason
    wrong = tuple(label + 1 for label in right)
    plan = chosen(convnet, floor=0.5, labels=wrong)
    assert all(ENCODINGS[send.encoding].is_lossless for send in plan.uploads)
    assert "0 right (0 without)" in plan.reason


def test_a_floor_without_labels_is_refused(convnet: Net) -> None:
    with pytest.raises(InputError, match="needs the right class of each sample"):
        chosen(convnet, floor=0.5)


def test_without_calibration_nothing_is_lost(convnet: Net) -> None:
    chooser = EncodingSelector(convnet.model, convnet.graph, EncodingPolicy(), PLAIN)
    plan = chooser.plan_set(lambda table: PlanSet((convnet.plan(table),))).plans[0]
    assert all(ENCODINGS[send.encoding].is_lossless for send in plan.uploads)
    assert plan.uploads[0].encoding != "raw"


def test_each_of_several_plans_is_within_the_tolerance(convnet: Net) -> None:
    """The first plan sends raw tensors, the second one the smallest that are accepted."""
    allowance = EncodingPolicy(tuple(ENCODINGS.values()), 3e-4, None, Path("given"))
    selector = EncodingSelector(
        convnet.model, convnet.graph, allowance, PLAIN, calibration=convnet.calibration
    )
    plans = selector.plan_set(
        lambda table: PlanSet((convnet.plan(None), convnet.plan(table)), shares=(0.5, 0.5))
    )
    assert plans.shares == (0.5, 0.5)
    assert plans.plans[0].uploads[0].encoding == "raw"
    assert plans.plans[1].uploads[0].encoding.startswith("fp16")
    assert "Lossy: 't' as fp16" in plans.plans[0].reason


@given(st.floats(0, 1), st.integers(1, 9))
def test_change_is_relative_to_the_range(part: float, size: int) -> None:
    want = np.linspace(0, 10, size + 1)
    worst, mean = change(want, want + part * 10)
    assert worst == pytest.approx(part, abs=1e-12)
    assert mean == pytest.approx(part, abs=1e-12)


def test_change_of_odd_outputs() -> None:
    ones = np.ones(4)
    assert change(ones, ones) == (0.0, 0.0)
    assert change(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == (0.25, 0.25)
    assert change(ones, np.array([1, 1, 1, np.nan]))[0] == np.inf
    assert change(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == (0.0, 0.0)
    assert change(ones, np.ones(3))[0] == np.inf
    assert change(np.zeros(0), np.zeros(0)) == (0.0, 0.0)


def test_ranks_count_the_classes_before_the_best() -> None:
    want = np.array([[3.0, 2.0, 1.0], [0.0, 0.0, 9.0]])
    got = np.array([[2.0, 3.0, 1.0], [0.0, 0.0, 9.0]])
    assert ranks(want, got).tolist() == [1, 0]
    outputs = [{"y": want[:1]}, {"y": want[1:]}]
    assert accuracy(outputs, (0, 2)) == 1.0
    assert accuracy(outputs, (0, 1)) == 0.5
    assert accuracy(outputs, (0,)) is None


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    net(tmp_path)
    feeds = inputs(3)
    np.savez(tmp_path / "in.npz", x=np.concatenate([each["x"] for each in feeds]))
    return tmp_path


def test_the_verbs_split_and_report(files: Path) -> None:
    split = ("split", files / "net.onnx", "--cut", "t", "--link", "100 kbit/s", "--threads", 1)
    lossy = run(
        *split, "-o", files / "a", "--tolerance", 0.1, "--calibration", files / "in.npz",
        "--format", "json",
    )  # fmt: skip
    assert lossy.exit_code == 0, lossy.output
    (send,) = json.loads(lossy.stdout)["plan"]["uploads"]
    assert send["encoding"].startswith("uint")
    plain = run(*split, "-o", files / "b")
    assert "as uint" not in plain.output
    shown = run(
        "encode-report", files / "a", "--calibration", files / "in.npz", "-o", files / "a.svg"
    )
    assert shown.exit_code == 0, shown.output
    assert all(n in shown.output for n, each in ENCODINGS.items() if not each.is_picture)
    assert (files / "a.svg").read_text().startswith("<svg")
    as_json = run("encode-report", files / "a", "--format", "json")
    (tensor,) = json.loads(as_json.stdout)["tensors"]
    assert tensor["tensor"] == "t"


def test_wrong_options_are_one_sentence(files: Path) -> None:
    np.savez(files / "wrong.npz", x=np.zeros((1, 3, 9, 9), np.float32))
    split = ("split", files / "net.onnx", "-o", files / "c")
    for words, sentence in (
        (("--encoding", "gzip"), "unknown"),
        (("--encoding", "fp16"), "--tolerance"),
        (("--tolerance", 0.1), "--calibration"),
        (("--tolerance", 0.1, "--calibration", files / "wrong.npz"), "calibration array"),
    ):
        found = run(*split, *words)
        assert isinstance(found.exception, InputError)
        assert sentence in str(found.exception)
        assert not (files / "c").exists()
