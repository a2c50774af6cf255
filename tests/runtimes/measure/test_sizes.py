"""Tensors whose size depends on data: measured on samples, then planned with."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from offload.costs.link import Link
from offload.costs.profile import Size
from offload.graph.load import load_model
from offload_runtimes.engine import Array, EngineOptions
from offload_runtimes.measure.inner_tensors import measured_sizes, unsized
from offload_runtimes.measure.profile import measure, optimized_model
from offload_runtimes.measure.split import SplitRequest, prepare, split

PLAIN = EngineOptions(threads=1, optimize=False)
# Where the input is above 0; two numbers of 8 bytes for each such place.
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[64,4] x) => (float[M] y) { a = Relu(x) z = NonZero(a) t = Transpose(z)
    b = Cast<to: int = 1>(t) two = Constant<value = int64[1] {1}>()
    y = ReduceSum<keepdims: int = 0>(b, two) }"""


def saved(folder: Path) -> Path:
    onnx.save(onnx.parser.parse_model(MODEL), folder / "net.onnx")
    return folder / "net.onnx"


def positive(count: int) -> dict[str, Array]:
    """An input with so many places above 0."""
    return {"x": np.where(np.arange(256) < count, 1, -1).reshape(64, 4).astype(np.float32)}


def test_sizes_are_the_mean_and_p95_over_the_samples(tmp_path: Path) -> None:
    subject = optimized_model(load_model(saved(tmp_path)), tmp_path)
    assert "z" in unsized(subject.model, subject.graph)
    assert "a" not in unsized(subject.model, subject.graph)
    samples = [positive(count) for count in (0, 10, 20)]
    found = measured_sizes(subject.model, subject.graph, PLAIN, samples)
    assert found["z"] == Size(160, 304)
    assert found["y"] == Size(40, 76)


def test_a_profile_keeps_them_and_says_when_they_are_a_guess(tmp_path: Path) -> None:
    subject = optimized_model(load_model(saved(tmp_path)), tmp_path)
    given = measure(subject, PLAIN, samples=[positive(10)], runs=3)
    assert given.sizes["z"] == Size(160, 160)
    assert not any("random input" in remark for remark in given.remarks)
    guessed = measure(subject, PLAIN, runs=3)
    assert any("random input" in remark for remark in guessed.remarks)


def test_plans_count_them_and_may_cut_there(tmp_path: Path) -> None:
    path, link = saved(tmp_path), Link(8e6, 8e6)
    free = prepare(SplitRequest(path, link, "local", device=1e9, server=1e9)).problem()
    assert "z" in free.costs.unsized
    subject = optimized_model(load_model(path), tmp_path)
    samples = [positive(count) for count in (0, 10, 20)]
    profile = measure(subject, PLAIN, samples=samples, runs=3)
    (tmp_path / "device.json").write_text(json.dumps(profile.to_json()))
    request = SplitRequest(path, link, "opss", ("z",), device=tmp_path / "device.json", server=1e9)
    situation = prepare(request).problem()
    assert not situation.costs.unsized
    assert situation.costs.upload_s["z"] == pytest.approx(link.upload_s(160))
    plan = split(request, tmp_path / "net.bundle").plan
    (send,) = plan.uploads
    assert (send.tensor, send.size_bytes, send.p95_bytes) == ("z", 160, 304)
    assert plan.latency_p95_s is not None
    assert plan.latency_p95_s > plan.latency_s
