"""Warm-up: the shapes that plans expect, a limit of time, and what a change of shapes costs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from offload.bundle.bundle import ModelValue
from offload.errors import InputError
from offload.planning.plan import Send
from offload.planning.plan_set import PlanSet
from offload_runtimes.engine import Engine, load
from offload_runtimes.serving import warm_up as module
from offload_runtimes.serving.warm_up import (
    is_slowed_by_changes,
    planned_shapes,
    warm_up,
    with_rows,
)

from tests.runtimes import bundles


@pytest.mark.parametrize(
    ("kind", "shape", "send", "expected"),
    [
        ("tensor(float)", (2, 64), None, (2, 64)),
        ("tensor(float)", ("n", 64), Send("x", 3 * 256), (3, 64)),
        ("tensor(float16)", ("n", 64), Send("x", 384, "fp16"), (3, 64)),
        ("tensor(float)", ("n", 64), Send("x", 100, "zstd", tensor_bytes=768), (3, 64)),
        ("tensor(uint8)", (1, "h", 4, 3), Send("x", 60), (1, 5, 4, 3)),
        ("tensor(int64)", ("n",), Send("x", 16), (2,)),
        # What the plan does not tell:
        ("tensor(float)", ("n", 64), None, None),
        ("tensor(float)", ("n", 64), Send("x", None), None),
        ("tensor(float)", ("n", 64), Send("x", 255), None),
        ("tensor(float)", ("n", "m"), Send("x", 256), None),
        ("tensor(float)", ("n", 0), Send("x", 0), None),
        ("tensor(float)", None, Send("x", 256), None),
        ("tensor(uint8)", ("n", 64), Send("x", 90, "uint8+zstd", tensor_bytes=256), None),
        ("tensor(string)", (2,), None, None),
    ],
)
def test_planned_shapes(
    tmp_path: Path,
    kind: str,
    shape: tuple[int | str | None, ...] | None,
    send: Send | None,
    expected: tuple[int, ...] | None,
) -> None:
    made = bundles.branches(tmp_path / "b")
    bundle = bundles.with_plan(made, uploads=() if send is None else (send,))
    value = ModelValue("x" if send is None else send.wire, kind, shape)
    found = [] if expected is None else [{value.name: expected}]
    assert planned_shapes(bundle, "server-0", [value]) == found
    assert planned_shapes(bundle, "server-9", [value]) == []


def test_each_planned_shape_once(tmp_path: Path) -> None:
    made = bundles.branches(tmp_path / "b", batch="n")
    one, two = (
        bundles.with_plan(made, uploads=(Send("t0", 256 * rows), Send("t1", 256 * rows))).plan
        for rows in (1, 2)
    )
    object.__setattr__(made.bundle, "plan_set", PlanSet((one, two, one)))
    inputs = load(made.bundle.segment_path("server-0")).inputs
    assert planned_shapes(made.bundle, "server-0", inputs) == [
        {"t0": (1, 64), "t1": (1, 64)},
        {"t0": (2, 64), "t1": (2, 64)},
    ]


class Clock:
    """An engine that takes the seconds it is told to, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run_s: float, change_s: float) -> None:
        self.now_s, self.run_s, self.change_s = 0.0, run_s, change_s
        self.last: object = None
        self.runs: list[Any] = []
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def zeros(self, shapes: Any) -> Any:
        return shapes

    def run(self, _: object, feeds: Any, limit_s: float) -> None:
        assert limit_s > 0
        self.now_s += self.run_s + (self.change_s if feeds != self.last else 0.0)
        self.last = feeds
        self.runs.append(feeds)

    def warm(self, limit_s: float, shapes: Any) -> None:
        self.run(None, shapes, limit_s)


@pytest.mark.parametrize(("change_s", "slowed"), [(0.05, True), (0.0055, True), (0.004, False)])
def test_changes_of_rows_are_timed(
    monkeypatch: pytest.MonkeyPatch, change_s: float, slowed: bool
) -> None:
    engine: Any = Clock(monkeypatch, 0.005, change_s)
    assert is_slowed_by_changes(engine, {"x": (1, 4)}, 8, 1.0) is slowed
    assert {each["x"] for each in engine.runs} == {(1, 4), (8, 4)}


def test_an_engine_that_refuses_the_rows_is_not_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Clock(monkeypatch, 0.005, 1.0)

    def refuse(*_: object) -> None:
        raise InputError("no")

    engine.run = refuse
    assert not is_slowed_by_changes(engine, {"x": (1, 4)}, 8, 1.0)


def test_warming_up_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Clock(monkeypatch, 4.0, 0.0)
    runs = [(engine, {"x": (rows, 4)}) for rows in range(1, 20)]
    assert warm_up(runs, 5.0, total_s=10.0) == 3
    assert [each["x"][0] for each in engine.runs] == [1, 2, 3]


def test_engines_run_on_the_given_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(bundles.branches(tmp_path / "b", batch="n").bundle.segment_path("server-0"))
    ran: list[int] = []
    compute = Engine.compute

    def spy(self: Engine, outputs: Any, feeds: Any, options: Any) -> Any:
        ran.append(feeds["t0"].shape[0])
        return compute(self, outputs, feeds, options)

    monkeypatch.setattr(Engine, "compute", spy)
    shapes = {"t0": (1, 64), "t1": (1, 64)}
    assert warm_up([(engine, {}), (engine, shapes), (engine, with_rows(shapes, 3))], 5.0) == 3
    assert ran == [1, 3]  # an open size without a shape is not tried
