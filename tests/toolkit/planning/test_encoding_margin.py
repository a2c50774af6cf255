"""Encodings are used only where they gain more than the prediction error."""

from dataclasses import replace

import pytest
from offload.costs.encoding_table import TransferOption
from offload.costs.encodings import ENCODINGS, RAW
from offload.planning.cut import cut_at
from offload.planning.cut_costs import Costs
from offload.planning.plan import SERVER_CALL_S, Plan
from offload.planning.planner import compare, error_margin_s, make_plan
from offload.planning.problem import PlanningProblem
from offload.planning.scheme import Scheme

from tests.toolkit.graphs import graph_of

GRAPH = graph_of([(0, 1)], 2)


def option(name: str, upload_s: float, codec_s: float = 0.0, bad_s: float = 0.0) -> TransferOption:
    return TransferOption(ENCODINGS[name], 32, 16, 20, codec_s, upload_s, upload_s + bad_s, 0.0)


def problem_with(*options: TransferOption) -> PlanningProblem:
    """All here takes 4 s; a cut after the first layer 1.1 s and the upload (raw 3.2 s)."""
    costs = Costs((1.0, 3.0), (0.1, 0.1), {"x": 9.0, "t0": 3.2, "t1": 9.0}, {"t1": 0.0}, {"t0": 32})
    return PlanningProblem(GRAPH, costs.with_uploads({"t0": (option("raw", 3.2), *options)}))


def plan(*options: TransferOption) -> Plan:
    return make_plan(problem_with(*options))


@pytest.mark.parametrize(
    ("encoded", "sent"),
    [
        (option("zstd", 2.0), ["zstd"]),
        (option("zstd", 2.8), []),  # 0.1 s less than here, by other 3 s of the device
        (option("zstd", 2.0, codec_s=0.4), []),  # encoding may take twice as long
        (option("zstd", 2.0, bad_s=0.7), []),  # some inputs compress badly
        (option("fp16", 2.0), ["fp16"]),
    ],
)
def test_an_encoding_must_gain_more_than_is_doubtful(
    encoded: TransferOption, sent: list[str]
) -> None:
    chosen = plan(encoded)
    assert [send.encoding for send in chosen.uploads] == sent
    assert ("all tensors are sent raw" in chosen.reason) == (not sent)


def test_what_is_lossy_must_gain_over_what_is_lossless() -> None:
    assert [s.encoding for s in plan(option("zstd", 2.0), option("fp16", 1.5)).uploads] == ["fp16"]
    chosen = plan(option("zstd", 2.0), option("fp16", 1.9, codec_s=0.09))
    assert [send.encoding for send in chosen.uploads] == ["zstd"]
    assert "all tensors are sent lossless" in chosen.reason


def test_an_answer_comes_back_encoded_and_its_seconds_count() -> None:
    problem = problem_with(option("zstd", 2.0))
    back = (option("raw", 0.9), option("planes", 0.2, codec_s=0.1))
    problem = replace(problem, costs=problem.costs.with_downloads({"t1": back}))
    chosen = make_plan(problem, "opss")
    assert [send.encoding for send in chosen.downloads] == ["planes"]
    assert chosen.latency_s == pytest.approx(1 + 2.0 + 0.1 + 0.1 + 0.2)
    assert chosen.forecast.download_codec_s == pytest.approx(0.1)
    assert chosen.forecast.download_bytes == (16,)
    plain = make_plan(
        replace(problem, costs=problem.costs.allowing(lambda e: e is RAW)),
        "opss",
        cut_at(GRAPH, {0}),
    )
    assert [send.encoding for send in plain.downloads] == ["raw"]


def test_the_same_plan_is_not_in_doubt() -> None:
    estimate = compare(problem_with(option("zstd", 2.0)))[-1]
    assert error_margin_s(estimate, estimate) == 0


def test_what_two_plans_do_apart_is_in_doubt() -> None:
    estimates = {c.scheme: c for c in compare(problem_with(option("zstd", 2.0)))}
    local, split = estimates[Scheme.LOCAL], estimates[Scheme.OPSS]
    assert error_margin_s(split, local) == pytest.approx(0.05 * (3.0 + 0.1 + 2.0) + SERVER_CALL_S)
    assert error_margin_s(local, split) == error_margin_s(split, local)
