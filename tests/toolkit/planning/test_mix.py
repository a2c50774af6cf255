"""Mixes of plans against every closed set, every encoding and every vertex of the program."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from offload.costs.encoding_table import TransferOption
from offload.costs.encodings import ENCODINGS, RAW
from offload.costs.link import Link
from offload.graph.model import Graph
from offload.planning.closed_sets import closed_sets as closed_set_table
from offload.planning.closed_sets import set_costs
from offload.planning.cut_costs import SPARE_BYTES, Costs
from offload.planning.mix import (
    Mix,
    best_mix,
    certain_mix,
    gain_is_certain,
    make_mix,
    mix_over,
    together_bytes,
)
from offload.planning.plan import Plan, ResourceUse, Side, Speeds
from offload.planning.plan_set import PlanSet, covers_all, plans_over
from offload.planning.planner import at_planned_speed, decide
from offload.planning.problem import Constraints, Objective, PlanningProblem
from offload.planning.scheme import SchemeEstimate
from offload.planning.shares import share_frames

from tests.toolkit.graphs import closed_sets, graph_of, graphs_with_costs
from tests.toolkit.planning.oracle import best_rate_hz
from tests.toolkit.planning.test_joint import random_graph

STREAM = Constraints(Objective.THROUGHPUT)
ZSTD = ENCODINGS["zstd"]
CHAIN = graph_of([(0, 1), (1, 2)], 3)
NAMES = ("x", "t0", "t1", "t2")
# All on the device: 9 s a frame; all on the server: 10 s of uplink, 3 s of server.
COSTS = Costs(
    (3.0, 3.0, 3.0),
    (1.0, 1.0, 1.0),
    {"x": 10.0, "t0": 12.0, "t1": 12.0, "t2": 12.0},
    dict.fromkeys(NAMES, 0.1),
    dict.fromkeys(NAMES, 32),
)


def uses_of(problem: PlanningProblem) -> Iterable[tuple[float, float, float, float]]:
    """What every split of a problem uses in one segment a side, with every choice of encodings."""
    graph, costs = problem.graph, problem.costs
    everything = len(graph.layers)
    for device in closed_sets(graph):
        sent = {
            name
            for name, readers in graph.consumers.items()
            if any(reader not in device for reader in readers)
            and graph.producer.get(name, -1) in {-1, *device}
        }
        if not device >= problem.pinned or sent & costs.unsized:
            continue
        is_split = 0 < len(device) < everything
        device_s = sum(costs.device_s[layer] for layer in device)
        server_s = sum(s for layer, s in enumerate(costs.server_s) if layer not in device)
        device_s += costs.device_segment_s * is_split
        server_s += costs.server_segment_s * is_split
        down_s = sum(
            costs.download_s[name] for name in graph.outputs if graph.producer[name] not in device
        )
        plain = [(0.0, costs.upload_s[name], 0.0) for name in sorted(sent)]
        ways = [
            [(o.encode_s, o.link_s, o.decode_s) for o in costs.upload_options.get(name, ())]
            or [plain[number]]
            for number, name in enumerate(sorted(sent))
        ]
        for chosen in itertools.product(*ways):
            encode_s, up_s, decode_s = (sum(way[i] for way in chosen) for i in range(3))
            yield device_s + encode_s, up_s, server_s + decode_s, down_s


def single_of(problem: PlanningProblem) -> SchemeEstimate:
    return decide(problem).chosen


@given(graphs_with_costs(5), st.floats(0, 2), st.floats(0, 2), st.integers(0, 2))
@settings(deadline=None, max_examples=150)
def test_the_best_mix_is_that_of_all_splits_and_is_proved(
    drawn: tuple[Graph, Costs], device_segment_s: float, server_segment_s: float, pinned: int
) -> None:
    graph, costs = drawn
    costs = replace(
        costs,
        device_segment_s=device_segment_s,
        server_segment_s=server_segment_s,
        produced=frozenset(graph.producer),
    )
    limits = replace(STREAM, pin_device=min(pinned, len(graph.layers)))
    problem = PlanningProblem(graph, costs, limits)
    mix = best_mix(problem, single_of(problem))
    assert mix.rate_hz == pytest.approx(best_rate_hz(uses_of(problem)), rel=1e-5)
    assert mix.is_optimal
    assert all(member.cut.device >= problem.pinned for member in mix.members)


@pytest.mark.parametrize("seed", range(5))
def test_on_larger_graphs_the_best_mix_is_that_of_all_listed_splits(seed: int) -> None:
    """Ten times graphs of 10 to 14 layers, with hundreds of splits."""
    random = np.random.default_rng(seed)
    for _ in range(10):
        problem = PlanningProblem(*random_graph(random, int(random.integers(10, 15))), STREAM)
        table = closed_set_table(problem.graph)
        assert table is not None
        stages_s = np.array(set_costs(problem.graph, problem.costs, table).stages_s).T
        listed = share_frames([ResourceUse(*row) for row in stages_s.tolist()])
        assert (stages_s @ listed.prices).min() >= 1 - 1e-6
        mix = best_mix(problem, single_of(problem))
        assert mix.rate_hz == pytest.approx(listed.rate_hz, rel=1e-5)
        assert mix.is_optimal


@st.composite
def encoded(draw: st.DrawFn) -> tuple[Graph, Costs]:
    """Graphs whose tensors may be sent raw or encoded: fewer seconds of link, more of the sides."""
    graph, costs = draw(graphs_with_costs(3))
    seconds = st.integers(0, 5).map(float)
    options = {
        name: (
            TransferOption(RAW, 32, 32, 32, 0.0, link_s, link_s, 0.0),
            TransferOption(ZSTD, 32, 9, 9, draw(seconds), draw(seconds), 0.0, draw(seconds)),
        )
        for name, link_s in costs.upload_s.items()
    }
    return graph, costs.with_uploads(options)


@given(encoded())
@settings(deadline=None, max_examples=100)
def test_plans_may_send_the_same_tensor_in_other_encodings(drawn: tuple[Graph, Costs]) -> None:
    problem = PlanningProblem(*drawn, STREAM)
    mix = best_mix(problem, single_of(problem))
    assert mix.rate_hz == pytest.approx(best_rate_hz(uses_of(problem)), rel=1e-5)
    assert mix.is_optimal


@given(graphs_with_costs(5), st.floats(1, 3))
@settings(deadline=None, max_examples=100)
def test_under_a_deadline_every_member_keeps_it_and_the_bound_holds(
    drawn: tuple[Graph, Costs], slack: float
) -> None:
    free = PlanningProblem(*drawn, STREAM)
    fastest_s = min(c.latency_s for c in decide(free).candidates)
    assume(fastest_s > 0)
    limits = replace(STREAM, deadline_s=fastest_s * slack)
    problem = replace(free, constraints=limits)
    single = single_of(problem)
    mix = best_mix(problem, single)
    assert all(m.latency_s <= fastest_s * slack * (1 + 1e-9) for m in mix.members)
    assert Mix.of([single]).rate_hz <= mix.rate_hz * (1 + 1e-9)
    every_hz = best_rate_hz(uses_of(problem))
    assert mix.rate_hz <= every_hz * (1 + 1e-5)
    assert every_hz <= mix.bound_hz * (1 + 1e-5)


def heavy(graph: Graph) -> Graph:
    layers = tuple(replace(layer, weight_bytes=100) for layer in graph.layers)
    return replace(graph, layers=layers)


@given(graphs_with_costs(5), st.floats(1, 3))
@settings(deadline=None, max_examples=100)
def test_all_members_together_keep_the_memory_limit(
    drawn: tuple[Graph, Costs], slack: float
) -> None:
    graph, costs = drawn
    free = PlanningProblem(heavy(graph), costs, STREAM, client_bytes=0)
    least = min(c.alternative.memory_bytes for c in decide(free).candidates) - SPARE_BYTES
    limit = SPARE_BYTES + least * slack + 1
    problem = replace(free, constraints=replace(STREAM, memory_bytes=limit))
    plans, _ = make_mix(problem)
    memory = [
        (next(a for a in p.alternatives if a.scheme == p.scheme).memory_bytes, p.on(Side.DEVICE))
        for p in plans.plans
    ]
    assert together_bytes(problem, memory) <= limit
    unlimited = best_mix(free, single_of(free))
    mix = best_mix(problem, single_of(problem))
    assert mix.rate_hz <= unlimited.rate_hz * (1 + 1e-6)
    assert mix.bound_hz >= unlimited.rate_hz * (1 - 1e-6)


def test_two_plans_share_the_frames_and_the_reason_says_so() -> None:
    problem = PlanningProblem(CHAIN, COSTS, STREAM)
    plans, why = make_mix(problem)
    assert [plan.scheme for plan in plans.plans] == ["local", "cloud"]
    assert plans.shares == pytest.approx((10 / 19, 9 / 19)), "1/9 and 1/10 frames/s"
    assert why == (
        "In a stream, 53% of the frames take plan 0 (local), 47% plan 1 (cloud): 0.211 frames/s,"
        " 1.90x this plan alone (0.111); no mix of plans gives more."
    )
    assert plans.plans[1].reason == (
        "Takes 47% of a stream's frames;"
        " one frame uses uplink 10.0 s, server 3.00 s, downlink 100 ms."
    )


def test_one_plan_takes_all_frames_where_no_mix_is_faster() -> None:
    quick = replace(COSTS, device_s=(0.0, 0.0, 1e-3))
    plans, why = make_mix(PlanningProblem(CHAIN, quick, STREAM))
    assert (len(plans.plans), plans.shares) == (1, ())
    assert why == ""


def test_a_link_that_is_far_too_slow_ends_the_search() -> None:
    hopeless = replace(COSTS, upload_s=dict.fromkeys(NAMES, 1e13))
    problem = PlanningProblem(CHAIN, hopeless, STREAM)
    assert best_mix(problem, single_of(problem)).rate_hz == pytest.approx(1 / 9)
    assert make_mix(problem)[0].shares == ()


def test_a_gain_within_the_prediction_error_is_refused() -> None:
    slow_link = replace(COSTS, upload_s=dict.fromkeys(NAMES, 1000.0))
    problem = PlanningProblem(CHAIN, slow_link, STREAM)
    single = single_of(problem)
    assert best_mix(problem, single).rate_hz > Mix.of([single]).rate_hz
    plans, why = make_mix(problem)
    assert (len(plans.plans), plans.shares) == (1, ())
    assert why == (
        "A mix of plans would give 0.112 frames/s, 1.01x this plan alone, which is within the"
        " prediction error: this plan takes all frames."
    )


def test_a_mix_that_does_not_fit_the_memory_leaves_the_single_plan() -> None:
    problem = PlanningProblem(heavy(CHAIN), COSTS, STREAM, client_bytes=0)
    single = single_of(problem)
    needed = best_mix(problem, single)
    assert len(needed.members) == 2
    limit = single.alternative.memory_bytes + 100
    plans, why = make_mix(replace(problem, constraints=replace(STREAM, memory_bytes=limit)))
    assert (len(plans.plans), plans.shares) == (1, ())
    assert "The plans of a faster mix need 6.00 MB of memory together" in why
    assert "this plan takes all frames" in why


def test_encodings_that_gain_little_are_left_out_of_a_mix() -> None:
    """Encoded, the frames of the cloud plan take 1 % less of the uplink, but more of the sides."""
    options = {
        "x": (
            TransferOption(RAW, 32, 32, 32, 0.0, 10.0, 10.0, 0.0),
            TransferOption(ZSTD, 32, 31, 31, 0.05, 9.9, 9.9, 0.1),
        )
    }
    problem = PlanningProblem(CHAIN, COSTS.with_uploads(options), STREAM)
    single = single_of(problem)
    encoded_hz = best_mix(problem, single).rate_hz
    mix, why = certain_mix(problem, single)
    assert {o.encoding for m in mix.members for o in m.costs.options_of(m.cut)} <= {RAW}
    assert mix.rate_hz < encoded_hz
    assert not mix.is_optimal, "a mix with encodings is faster"
    assert f"no mix of plans gives more than {mix.bound_hz:.3g}" in why


@given(graphs_with_costs(5))
@settings(deadline=None, max_examples=50)
def test_a_certain_mix_gains_and_a_plan_does_not_gain_on_itself(drawn: tuple[Graph, Costs]) -> None:
    problem = PlanningProblem(*drawn, STREAM)
    single = single_of(problem)
    alone = Mix.of([single])
    mix, _ = certain_mix(problem, single)
    assert mix.members[0] == single
    assert not gain_is_certain(alone, alone)
    if len(mix.members) > 1:
        assert mix.rate_hz > alone.rate_hz
        assert gain_is_certain(mix, alone)


LINKS = [Link(rate, rate, 0.5, 0.5) for rate in np.geomspace(8, 800, 7)]


@given(
    graphs_with_costs(5), st.sampled_from((0.0, 0.05, 0.3)), st.sampled_from(((1.0,), (1.0, 3.0)))
)
@settings(deadline=None, max_examples=60)
def test_over_a_range_the_mix_is_nearly_that_of_each_link(
    drawn: tuple[Graph, Costs], worth: float, slowdowns: tuple[float, ...]
) -> None:
    def problem_at(link: Link, slowdown: float = 1.0) -> PlanningProblem:
        graph, costs = drawn
        costs = replace(costs, device_s=tuple(slowdown * s for s in costs.device_s))
        upload_s = {name: link.upload_s(32) for name in costs.upload_s}
        download_s = {name: link.download_s(32) for name in costs.download_s}
        sent = replace(costs, upload_s=upload_s, download_s=download_s)
        return PlanningProblem(graph, sent, STREAM, link)

    def mix_at(link: Link, slowdown: float) -> PlanSet:
        mix = make_mix(problem_at(link, slowdown))[0]
        return replace(mix, plans=tuple(at_planned_speed(p, slowdown) for p in mix.plans))

    mixes = {(link, factor): mix_at(link, factor) for factor in slowdowns for link in LINKS}
    singles = plans_over(lambda *point: mixes[point].plans[0], LINKS, worth, slowdowns)
    plans = mix_over(problem_at(LINKS[0]), singles, mixes, worth)
    assert covers_all(plans.ranges, len(plans.plans), plans.shares, plans.slower)
    if not any(mix.shares for mix in mixes.values()):
        assert plans == singles
        return
    assert bool(plans.shares) == (len(plans.plans) > 1)
    for (link, slowdown), mix in mixes.items():
        kept_hz, mix_hz = (rate_on(link, each.plans, slowdown) for each in (plans, mix))
        assert kept_hz >= mix_hz * (1 - worth) * 0.999
    for link in LINKS:
        best = min(plans.plans, key=lambda plan: plan.forecast.value_s(link))
        chosen = plans.plans[plans.at(link.up_bps)]
        assert chosen.forecast.value_s(link) <= best.forecast.value_s(link) * (1 + 1e-6)


def rate_on(link: Link, plans: Sequence[Plan], slowdown: float) -> float:
    return share_frames([p.forecast.use(link, Speeds(device=slowdown)) for p in plans]).rate_hz


def test_plans_of_a_mix_use_what_the_linear_program_counted() -> None:
    link = Link(25.6, 25.6)
    upload_s = {name: link.upload_s(32) for name in NAMES}
    download_s = {name: link.download_s(32) for name in NAMES}
    costs = replace(COSTS, upload_s=upload_s, download_s=download_s)
    problem = PlanningProblem(CHAIN, costs, STREAM, link)
    plans, _ = make_mix(problem)
    assert plans.shares
    busy = np.array(plans.shares) @ np.array([p.forecast.use(link).seconds for p in plans.plans])
    expected_hz = best_mix(problem, single_of(problem)).rate_hz
    assert 1 / busy.max() == pytest.approx(expected_hz, rel=1e-6)
