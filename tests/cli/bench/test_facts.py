"""Statements over all cells, on made-up ones."""

from dataclasses import replace

from offload_cli.bench.results import facts, planning

from tests.cli.bench.groups import cell, group


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
