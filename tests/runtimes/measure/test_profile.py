"""Profiles of small models, measured here; what is asserted holds on a busy machine too."""

from pathlib import Path

import onnx
import pytest
from offload.graph.load import load_model
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure.profile import measure, optimized_model

from tests.runtimes.measure.convnet import build


def test_every_kernel_that_runs_is_some_layers(tmp_path: Path) -> None:
    """Also those that the engine renames as it lays tensors out in blocks of channels."""
    onnx.save(build(), tmp_path / "net.onnx")
    subject = optimized_model(load_model(tmp_path / "net.onnx"), tmp_path)
    profile = measure(subject, EngineOptions(threads=1), runs=3)
    assert [layer.op for layer in subject.graph.layers][:2] == ["Conv+Relu", "Conv+Relu"]
    seconds = profile.costs_of(subject.graph)
    assert min(seconds[:2]) > 0
    assert sum(seconds) == pytest.approx(profile.whole_s)
    assert profile.segment_s >= 0
