"""Encoding and segments in the searches: device time before an upload, server time after it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offload.costs.encoding_table import (
    EncodedSize,
    EncodingTable,
    TransferOption,
    transfer_options,
)
from offload.costs.encodings import ENCODINGS, RAW, ZSTD
from offload.costs.link import Link
from offload.costs.profile import Profile
from offload.graph.model import Graph
from offload.planning.cut import cut_at
from offload.planning.cut_costs import Costs
from offload.planning.joint import joint
from offload.planning.mincut import min_cut
from offload.planning.problem import PlanningProblem

from tests.toolkit.graphs import closed_sets as all_closed_sets
from tests.toolkit.graphs import graphs_with_costs
from tests.toolkit.planning.oracle import assert_set_costs_are_right, solved_s


@st.composite
def encoded_graphs(draw: st.DrawFn, most: int) -> tuple[Graph, Costs]:
    """Every tensor takes some time to encode and decode, and to send."""
    graph, costs = draw(graphs_with_costs(most))
    some = st.floats(0, 5)
    options = {
        name: (TransferOption(ZSTD, 32, 32, 32, draw(some), s + 0.5, s + 0.5, draw(some)),)
        for name, s in costs.upload_s.items()
    }
    return graph, replace(
        costs.with_uploads(options),
        device_segment_s=draw(some),
        produced=frozenset(graph.producer),
    )


@given(encoded_graphs(6))
@settings(max_examples=40, deadline=None)
def test_the_minimum_cut_counts_encoding(drawn: tuple[Graph, Costs]) -> None:
    graph, costs = drawn
    best = min(sum(costs.stages_s(cut_at(graph, device))) for device in all_closed_sets(graph))
    assert sum(costs.stages_s(min_cut(graph, costs))) == pytest.approx(best)


@given(encoded_graphs(5), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_the_joint_search_counts_encoding_and_segments(
    drawn: tuple[Graph, Costs], segment_s: float
) -> None:
    graph, costs = drawn[0], replace(drawn[1], server_segment_s=segment_s)
    cuts = [cut_at(graph, device) for device in all_closed_sets(graph)]
    best = min(solved_s(graph, costs, cut) for cut in cuts)
    for limit in (50_000, 0):  # all listed; branched on
        result = joint(
            PlanningProblem(graph, costs),
            lambda cut: (solved_s(graph, costs, cut),) * 2,
            limit=limit,
            budget_s=60,
        )
        assert result.value == pytest.approx(best)
        assert result.lower_bound <= best * (1 + 1e-9)


@given(encoded_graphs(6), st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_set_costs_count_encoding_and_segments(
    drawn: tuple[Graph, Costs], segment_s: float
) -> None:
    assert_set_costs_are_right(drawn[0], replace(drawn[1], server_segment_s=segment_s))


def profile(codec_s: float | None, whole_s: float = 1.0) -> Profile:
    return Profile("0" * 64, "m", "cpu", 1, (), whole_s, 1, codec_s=codec_s)


LINK = Link(8e3, 8e3)  # a millisecond a byte


def options(entry: EncodedSize, device: Profile) -> list[str]:
    table = EncodingTable({"t": (entry,)}, codec_s=0.01, whole_s=1.0)
    offered = transfer_options({"t": 1000}, table, device, profile(0.01), LINK.upload_s)["t"]
    return [option.encoding.name for option in offered]


def test_seconds_are_carried_over_by_the_reference_work() -> None:
    entry = EncodedSize(ZSTD, 500, 500, 0.05, 0.02)
    table = EncodingTable({"t": (entry,)}, codec_s=0.01, whole_s=1.0)
    _, option = transfer_options(
        {"t": 1000}, table, profile(0.02), profile(None, 3.0), LINK.upload_s
    )["t"]
    assert option.encode_s == pytest.approx(0.1)
    assert option.decode_s == pytest.approx(0.06)
    assert option.link_s == pytest.approx(LINK.upload_s(500))


def test_a_bad_input_takes_longer() -> None:
    table = EncodingTable({"t": (EncodedSize(ZSTD, 500, 600, 0.01, 0.01),)}, codec_s=0.01)
    _, option = transfer_options({"t": 1000}, table, profile(0.01), profile(0.01), LINK.upload_s)[
        "t"
    ]
    assert option.p95_link_s - option.link_s == pytest.approx(
        LINK.upload_s(600) - LINK.upload_s(500)
    )


def test_what_may_be_slower_than_raw_is_not_offered() -> None:
    assert options(EncodedSize(ZSTD, 500, 600, 0.01, 0.01), profile(0.01)) == ["raw", "zstd"]
    assert options(EncodedSize(ZSTD, 500, 990, 0.01, 0.01), profile(0.01)) == ["raw"]  # some inputs
    assert options(EncodedSize(ZSTD, 500, 600, 0.01, 0.01), profile(0.4)) == [
        "raw"
    ]  # a slow device
    assert options(EncodedSize(ZSTD, 1000, 1000, 0.0, 0.0), profile(0.01)) == ["raw"]


def test_the_quickest_option_comes_first_and_others_can_be_chosen() -> None:
    entries = (
        EncodedSize(ZSTD, 800, 800, 0.0, 0.0),
        EncodedSize(ENCODINGS["fp16"], 500, 500, 0.01, 0.0),
    )
    table = EncodingTable({"t": entries}, codec_s=0.01)
    offered = transfer_options({"t": 1000}, table, profile(0.01), profile(0.01), LINK.upload_s)
    costs = Costs((), (), {"t": 1.0}, {}, {"t": 1000}).with_uploads(offered)
    assert [option.encoding.name for option in costs.upload_options["t"]] == ["fp16", "zstd", "raw"]
    assert costs.size_bytes["t"] == 500
    raw = costs.with_upload("t", costs.upload_options["t"][2])
    assert raw.upload_option("t") is not None
    assert raw.upload_options["t"][0].encoding is RAW
    assert (raw.size_bytes["t"], raw.encode_s["t"]) == (1000, 0.0)
    assert raw.upload_s["t"] == pytest.approx(LINK.upload_s(1000))
