"""Encodings are used where they gain more than predictions may be off by, and only there."""

import pytest
from offload.encoding.encoding import ENCODINGS
from offload.partition.costs import Costs
from offload.partition.crossing import Crossing
from offload.plan.candidate import Situation
from offload.plan.paying import doubt_s
from offload.plan.plan import Plan
from offload.plan.planner import choose, compare, make_plan

from tests.toolkit.graphs import graph_of

GRAPH = graph_of([(0, 1)], 2)


def way(name: str, upload_s: float, codec_s: float = 0.0, bad_s: float = 0.0) -> Crossing:
    return Crossing(ENCODINGS[name], 32, 16, 20, codec_s, upload_s, upload_s + bad_s, 0.0)


def situation(*ways: Crossing) -> Situation:
    """All here takes 4 s; a cut after the first layer 1.1 s and the upload (raw 3.2 s)."""
    costs = Costs((1.0, 3.0), (0.1, 0.1), {"x": 9.0, "t0": 3.2, "t1": 9.0}, {"t1": 0.0}, {"t0": 32})
    return Situation(GRAPH, costs.encoded({"t0": (way("raw", 3.2), *ways)}))


def plan(*ways: Crossing) -> Plan:
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
def test_an_encoding_must_gain_more_than_is_doubtful(one: Crossing, sent: list[str]) -> None:
    found = plan(one)
    assert [send.encoding for send in found.uploads] == sent
    assert ("all crosses raw" in found.reason) == (not sent)


def test_what_is_lossy_must_gain_over_what_is_lossless() -> None:
    assert [s.encoding for s in plan(way("zstd", 2.0), way("fp16", 1.5)).uploads] == ["fp16"]
    found = plan(way("zstd", 2.0), way("fp16", 1.9, codec_s=0.09))
    assert [send.encoding for send in found.uploads] == ["zstd"]
    assert "all crosses lossless" in found.reason


def test_the_same_plan_is_not_in_doubt() -> None:
    found = choose(compare(situation(way("zstd", 2.0))))
    assert doubt_s(found, found) == 0
