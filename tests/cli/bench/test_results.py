"""Goals, facts and planning times, computed from made-up results."""

from dataclasses import replace

import pytest
from offload_cli.bench.results import facts, gain, goals, picks, planning

from tests.cli.bench.groups import cell, group


def test_a_pick_as_fast_as_the_best_is_good() -> None:
    (pick,) = picks([group("opss", local=3.0, cloud=2.0, partition=1.5, opss=1.52)])
    assert pick.best.scheme == "partition"
    assert pick.ratio == pytest.approx(1.52 / 1.5)
    assert pick.is_good


@pytest.mark.parametrize(
    ("slow", "predicted", "why"),
    [(2.0, 1.0, "OPSS was predicted at 1.00 s"), (1.021, 1.0, "within the noise")],
)
def test_a_pick_that_loses_is_listed_with_a_reason(slow: float, predicted: float, why: str) -> None:
    made = group("opss", local=3.0, cloud=2.0, partition=1.0, opss=slow)
    cells = [replace(c, predicted_s=predicted) if c.scheme == "opss" else c for c in made.cells]
    (pick,) = picks([replace(made, cells=tuple(cells))])
    assert not pick.is_good
    assert why in pick.why
    assert not goals([made])[0].met


def test_a_cameras_bytes_are_judged_against_their_own_rivals() -> None:
    made = group("cloud", local=3.0, cloud=2.0, partition=2.0, cloud_raw=0.5, auto_raw=0.5)
    floats, raw = picks([made])
    assert (floats.kind, floats.best.scheme) == ("fp32", "cloud")
    assert (raw.kind, raw.best.scheme) == ("raw", "cloud-raw")


def test_a_pick_that_stays_local_is_told_from_lo_by_its_input() -> None:
    made = group("cloud", local=1.0, cloud=2.0, cloud_raw=2.0, auto_raw=1.04)
    cells = [replace(c, upload_bytes=0) if c.scheme == "auto-raw" else c for c in made.cells]
    _, pick = picks([replace(made, cells=tuple(cells))])
    assert not pick.is_good
    assert "camera's bytes into the floats" in pick.why
    assert "predicted 1.04 s" in pick.why


def test_overlap_counts_where_it_helps_most() -> None:
    groups = [
        group(model="multi_stream", network="3g", partition=2.0, opss=2.0),
        group(model="multi_stream", network="wifi", partition=2.0, opss=1.6),
        group(model="randwire", network="wifi", partition=2.0, opss=2.0),
        group(model="randwire_inside", network="4g", partition=2.0, opss=1.0),
    ]
    rows = {row.measure: row for row in goals(groups)}
    assert rows["OPSS over PO, multi_stream"].measured == "1.25x on wifi, 1.25x predicted"
    assert rows["OPSS over PO, multi_stream"].met
    assert not rows["OPSS over PO, randwire"].met
    assert rows["OPSS over PO, randwire, cut forced inside a stage"].met


def test_a_gain_under_a_limit_is_said_with_the_limit() -> None:
    groups = [
        group(model="randwire", network="wifi", partition=2.0, opss=2.0),
        group(model="randwire_private", network="100mbit", partition=1.1, opss=1.0),
    ]
    (row,) = (row for row in goals(groups) if row.measure == "OPSS over PO, randwire")
    assert row.met
    assert row.measured == (
        "1.10x on 100mbit, 1.10x predicted, the input kept on the device;"
        " else 1.00x on wifi, 1.00x predicted"
    )


def test_one_wrong_answer_misses_the_goal() -> None:
    made = group(local=1.0, cloud=1.0)
    wrong = replace(made, cells=(*made.cells, cell("partition", 1.0, difference=0.5)))
    assert goals([made])[-1].met
    assert not goals([wrong])[-1].met
    assert "2 of 3" in goals([wrong])[-1].measured


def test_a_gain_needs_both() -> None:
    assert gain(group(partition=2.0, opss=1.0), "opss") == 2.0
    assert gain(group(local=2.0), "opss") is None


def test_picks_are_told_apart_by_program() -> None:
    same = group("local", local=1.0, cloud=3.0, partition=2.0)
    faster = group("joint", network="4g", local=2.0, cloud=3.0, partition=2.0, joint=1.0)
    found = dict(facts([same, faster]))
    assert found["picks that run the same program as the best of LO, CO and PO"] == "1"
    assert "1: 2.00 to 2.00, 1 of them more than 1.02" in found.values()
    assert "0" in dict(facts([same])).values()


def test_predictions_of_the_paced_scheme_are_kept_apart() -> None:
    made = group("local", local=1.0)
    off = (
        cell("local", 1.0, picked=True, predicted_s=0.8),
        cell("cloud", 1.1, predicted_s=1.0),
        replace(cell("joint", 9.0, predicted_s=1.0), runs_as="local"),
    )
    found = list(dict(facts([replace(made, cells=off)])).values())
    assert found[2:] == ["10.0 % of 1", "25.0 % of 1"]


def test_planning_is_least_to_most() -> None:
    assert planning([group(opss=1.0), group(network="4g", opss=1.0)]) == [
        ("net", "1.00 ms to 2.00 ms", "2.00 ms to 2.00 ms", "10.0 ms to 10.0 ms")
    ]
