import json
from dataclasses import replace
from pathlib import Path

import pytest
from offload.costs.profile import LayerCost, Profile, Size, estimate_profile, load_profile
from offload.errors import InputError

from tests.toolkit.graphs import graph_of

GRAPH = graph_of([(0, 1)], 2)
PROFILE = Profile(
    GRAPH.digest,
    "bench",
    "CPUExecutionProvider",
    1,
    (LayerCost("l0", 0.1, 0.09, 0.12), LayerCost("l1", 0.2, 0.19, 0.22)),
    0.3,
    5,
    segment_s=0.01,
    client_bytes=80_000_000,
    sizes={"t0": Size(100, 200)},
)


def test_json_round_trip() -> None:
    assert Profile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE


def test_costs_follow_the_graphs_order_and_scale() -> None:
    assert PROFILE.costs_of(GRAPH) == (0.1, 0.2)
    assert PROFILE.scaled(5).costs_of(GRAPH) == (0.5, 1.0)
    assert PROFILE.scaled(5).whole_s == 1.5
    assert PROFILE.scaled(5).segment_s == 0.05


def test_old_files_say_nothing_of_segments_and_the_client() -> None:
    new = ("segment_s", "client_bytes", "sizes")
    old = {key: value for key, value in PROFILE.to_json().items() if key not in new}
    assert Profile.from_json(old) == replace(PROFILE, segment_s=0.0, client_bytes=None, sizes={})


def test_profile_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="another model"):
        replace(PROFILE, model="f" * 64).costs_of(GRAPH)


def test_profile_of_other_layers_is_refused() -> None:
    with pytest.raises(InputError, match="lacks layer 'l1'"):
        replace(PROFILE, layers=PROFILE.layers[:1]).costs_of(GRAPH)


def test_estimate_charges_an_average_where_flops_are_unknown_and_says_so() -> None:
    first, second = GRAPH.layers
    layers = (replace(first, flops=32.0), replace(second, assumed_flops=32.0))
    graph = replace(GRAPH, layers=layers, uncounted_share=0.5, uncounted=("Loop", "Scan"))
    profile = estimate_profile(graph, 64.0)
    assert profile.estimated
    assert profile.costs_of(graph) == (0.5, 0.5)
    assert profile.remarks == (
        "50.0% of the work could not be counted (Loop, Scan): an average is assumed for it",
    )
    with pytest.raises(InputError, match="positive"):
        estimate_profile(GRAPH, 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "does not exist"), ("x", "not a profile"), ("[]", "not a profile"), ("{}", "format")],
)
def test_bad_files(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=why):
        load_profile(path)


def test_the_time_of_a_broken_layer_is_shared_by_its_work() -> None:
    finer = graph_of([(0, 1), (1, 2)], 3)
    first, second = (
        replace(layer, flops=flops)
        for layer, flops in zip(finer.layers[1:], (300.0, 100.0), strict=True)
    )
    finer = replace(finer, layers=(finer.layers[0], first, second))
    graph = replace(GRAPH, layers=(GRAPH.layers[0], replace(GRAPH.layers[1], nodes=(1, 2))))
    refined = PROFILE.refined(graph, finer)
    assert refined.costs_of(finer) == pytest.approx((0.1, 0.15, 0.05))
    assert refined.layers[2].high_s == pytest.approx(0.055)
    assert PROFILE.refined(graph, graph) is PROFILE


def test_a_broken_layer_that_computes_nothing_is_shared_by_bytes() -> None:
    finer = graph_of([(0, 1)], 2)
    finer = replace(finer, layers=tuple(replace(layer, flops=0.0) for layer in finer.layers))
    whole = replace(finer, layers=(replace(finer.layers[0], nodes=(0, 1)),))
    assert PROFILE.refined(whole, finer).costs_of(finer) == pytest.approx((0.05, 0.05))
