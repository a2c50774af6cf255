"""Profiles of small models, measured here; what is asserted holds on a busy machine too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from offload.graph.load import load_model
from offload_runtimes.engine import EngineOptions
from offload_runtimes.measure import profile
from offload_runtimes.measure.machine import Feeds, LocalMachine
from offload_runtimes.measure.profile import measure, optimized_model

from tests.runtimes.measure.convnet import build


def test_every_kernel_that_runs_is_some_layers(tmp_path: Path) -> None:
    """Also those that the engine renames as it lays tensors out in blocks of channels."""
    onnx.save(build(), tmp_path / "net.onnx")
    subject = optimized_model(load_model(tmp_path / "net.onnx"), tmp_path)
    measured = measure(subject, EngineOptions(threads=1), runs=3)
    assert [layer.op for layer in subject.graph.layers][:2] == ["Conv+Relu", "Conv+Relu"]
    seconds = measured.costs_of(subject.graph)
    assert min(seconds[:2]) > 0
    assert sum(seconds) == pytest.approx(measured.whole_s)
    assert measured.segment_s >= 0


def test_the_whole_model_takes_its_memory_before_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If pieces ran first, each would allocate a block: 160 MB more for Whisper's encoder."""
    onnx.save(build(), tmp_path / "net.onnx")
    subject = optimized_model(load_model(tmp_path / "net.onnx"), tmp_path)
    monkeypatch.setattr(
        profile, "divided", lambda graph, _: [range(2), range(2, len(graph.layers))]
    )
    first_runs: list[list[str]] = []

    class Recorder(LocalMachine):
        def load(self, *arguments: Any, **options: Any) -> Any:
            loaded = super().load(*arguments, **options)
            keep = loaded.keep

            def recorded(outputs: Sequence[str], feeds: Feeds) -> list[Any]:
                first_runs.append(list(outputs))
                return keep(outputs, feeds)

            monkeypatch.setattr(loaded, "keep", recorded)
            return loaded

    measure(subject, EngineOptions(threads=1), runs=3, machine=Recorder())
    assert len(first_runs) == 3
    assert first_runs[0] == list(subject.graph.outputs)
