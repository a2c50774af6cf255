"""Named sizes and expressions of them."""

import pytest
from offload.graph.dimensions import Symbols


def symbols(*names: str, **sizes: int) -> Symbols:
    return Symbols(frozenset(names), dict(sizes))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("past + s", 9),
        ("past + 1", 6),
        ("2*past - s", 6),
        ("floor(past/2)", 2),
        ("past//2", 2),
        ("ceiling(past/2)", 3),
        ("Max(1, past)", 5),
        ("(past + s) % 4", 1),
        ("past/2", None),  # no whole size
        ("s - past", None),  # below zero
        ("past/0", None),
        ("missing + past", None),
    ],
)
def test_expressions_are_evaluated(text: str, size: int | None) -> None:
    assert symbols("past", "s", text, past=5, s=4).size(text) == size


@pytest.mark.parametrize(
    "text", ["batch size", "a-b", "in", "x.y", "", "past[0]", "f(past)", "é" * 999]
)
def test_a_name_that_is_not_an_expression_is_a_symbol(text: str) -> None:
    known = symbols("past", text)
    assert known.unknown(text) == (text,)
    assert known.bind(text, 3)
    assert known.size(text) == 3


def test_an_unknown_symbol_is_solved_for() -> None:
    known = symbols("past", "s", "past + s", s=1)
    assert known.bind("past + s", 20)
    assert known.size("past") == 19
    assert not known.bind("past", 18)
    assert known.substituted("past + s") == 20
    assert symbols("past", "s", past=3).substituted("past + s") == "3 + s"


def test_plain_names_are_bound_before_expressions() -> None:
    known = symbols("past", "s", "past + s")
    assert known.bind_all([("past + s", 20), ("past", 12)]) is None
    assert known.size("s") == 8
    assert symbols("a", "a + 1").bind_all([("a + 1", 3), ("a", 3)]) is not None
