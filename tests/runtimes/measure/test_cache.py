"""What encodings take is measured once for a model, its inputs and encodings, unless asked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from offload.costs.encoding_table import EncodingTable
from offload.costs.encodings import Encoding, parse_allowed
from offload.errors import InputError
from offload_runtimes.measure import encoding_sizes as kept
from offload_runtimes.measure.cache import cache_folder
from offload_runtimes.measure.calibration import Calibration
from offload_runtimes.measure.encoding_sizes import cached_encodings, encodings_cache_path

from tests.runtimes.measure.convnet import PLAIN, Net, inputs, net

ANY = parse_allowed("any")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Net, list[int]]:
    """A network in an empty cache, and a list that grows whenever something is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, times = net(tmp_path), []

    def counted(*_: object) -> EncodingTable:
        times.append(1)
        return found.catalogue

    monkeypatch.setattr(kept, "measure_encodings", counted)
    return found, times


def asked(
    convnet: Net,
    calibration: Calibration | None = None,
    allowed: tuple[Encoding, ...] = ANY,
    again: bool = False,
) -> EncodingTable:
    calibration = calibration or convnet.calibration
    return cached_encodings(convnet.model, convnet.graph, calibration, allowed, PLAIN, again=again)


def test_a_second_time_nothing_is_measured(measured: tuple[Net, list[int]]) -> None:
    convnet, times = measured
    assert [asked(convnet) for _ in range(3)] == [convnet.catalogue] * 3
    assert len(times) == 1
    asked(convnet, again=True)
    assert len(times) == 2


def test_other_inputs_or_encodings_are_measured(measured: tuple[Net, list[int]]) -> None:
    convnet, times = measured
    asked(convnet)
    asked(convnet, Calibration(tuple(inputs(3))))
    asked(convnet, Calibration(({"x": np.zeros_like(inputs(1)[0]["x"])},)))
    asked(convnet, allowed=parse_allowed("fp16"))
    assert len(times) == 4


@pytest.mark.parametrize("text", ["no json", "{}", '{"format": 1, "tensors": {"t": [[]]}}'])
def test_what_cannot_be_read_is_measured_again(measured: tuple[Net, list[int]], text: str) -> None:
    convnet, times = measured
    asked(convnet)
    folder = cache_folder()
    assert folder is not None
    path = folder / encodings_cache_path(convnet.graph, convnet.calibration, ANY, PLAIN)
    path.write_text(text)
    assert asked(convnet) == convnet.catalogue
    assert len(times) == 2
    assert EncodingTable.from_json(json.loads(path.read_text())) == convnet.catalogue


def test_a_catalogue_comes_back_from_its_file(tmp_path: Path) -> None:
    found = replace(net(tmp_path).catalogue, inputs=7)
    back = EncodingTable.from_json(json.loads(json.dumps(found.to_json())))
    assert back == found
    assert back.of("t")[0].affine == found.of("t")[0].affine
    with pytest.raises(InputError, match="format 9, expected 2"):
        EncodingTable.from_json({**found.to_json(), "format": 9})
