"""Encodings are used only where they gain more than the prediction error."""

from dataclasses import replace

import pytest
from offload.costs.encoding_table import TransferOption
from offload.costs.encodings import ENCODINGS, RAW
from offload.planning.cut import cut_at
from offload.planning.cut_costs import Costs
from offload.planning.plan import Plan
from offload.planning.planner import SERVER_CALL_S, compare, error_margin_s, make_plan
from offload.planning.problem import PlanningProblem
from offload.planning.scheme import Scheme

from tests.toolkit.graphs import graph_of

GRAPH = graph_of([(0, 1)], 2)


def way(name: str, upload_s: float, codec_s: float = 0.0, bad_s: float = 0.0) -> TransferOption:
    return TransferOption(ENCODINGS[name], 32, 16, 20, codec_s, upload_s, upload_s + bad_s, 0.0)


def situation(*ways: TransferOption) -> PlanningProblem:
    """All here takes 4 s; a cut after the first layer 1.1 s and the upload (raw 3.2 s)."""
    costs = Costs((1.0, 3.0), (0.1, 0.1), {"x": 9.0, "t0": 3.2, "t1": 9.0}, {"t1": 0.0}, {"t0": 32})
    return PlanningProblem(GRAPH, costs.with_uploads({"t0": (way("raw", 3.2), *ways)}))


def plan(*ways: TransferOption) -> Plan:
    return make_plan(situation(*ways))


@pytest.mark.parametrize(
    ("one", "sent"),
    [
        (way("zstd", 2.0), ["zstd"]),
        (way("zstd", 2.8), []),  # 0.1 s less than here, by other 3 s of the device
        (way("zstd", 2.0, codec_s=0.4), []),  # encoding may take twice as long
        (way("zstd", 2.0, bad_s=0.7), []),  # some inputs compress badly
        (way("fp16", 2.0), ["fp16"]),
    ],
)
def test_an_encoding_must_gain_more_than_is_doubtful(one: TransferOption, sent: list[str]) -> None:
    found = plan(one)
    assert [send.encoding for send in found.uploads] == sent
    assert ("all tensors are sent raw" in found.reason) == (not sent)


def test_what_is_lossy_must_gain_over_what_is_lossless() -> None:
    assert [s.encoding for s in plan(way("zstd", 2.0), way("fp16", 1.5)).uploads] == ["fp16"]
    found = plan(way("zstd", 2.0), way("fp16", 1.9, codec_s=0.09))
    assert [send.encoding for send in found.uploads] == ["zstd"]
    assert "all tensors are sent lossless" in found.reason


def test_an_answer_comes_back_encoded_and_its_seconds_count() -> None:
    asked = situation(way("zstd", 2.0))
    back = (way("raw", 0.9), way("planes", 0.2, codec_s=0.1))
    asked = replace(asked, costs=asked.costs.with_downloads({"t1": back}))
    found = make_plan(asked, "opss")
    assert [send.encoding for send in found.downloads] == ["planes"]
    assert found.latency_s == pytest.approx(1 + 2.0 + 0.1 + 0.1 + 0.2)
    assert found.forecast.download_codec_s == pytest.approx(0.1)
    assert found.forecast.download_bytes == (16,)
    plain = make_plan(
        replace(asked, costs=asked.costs.allowing(lambda e: e is RAW)), "opss", cut_at(GRAPH, {0})
    )
    assert [send.encoding for send in plain.downloads] == ["raw"]


def test_the_same_plan_is_not_in_doubt() -> None:
    found = compare(situation(way("zstd", 2.0)))[-1]
    assert error_margin_s(found, found) == 0


def test_what_two_plans_do_apart_is_in_doubt() -> None:
    found = {c.scheme: c for c in compare(situation(way("zstd", 2.0)))}
    here, split = found[Scheme.LOCAL], found[Scheme.OPSS]
    assert error_margin_s(split, here) == pytest.approx(0.05 * (3.0 + 0.1 + 2.0) + SERVER_CALL_S)
    assert error_margin_s(here, split) == error_margin_s(split, here)
