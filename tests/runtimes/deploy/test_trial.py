"""The choice of the scheme to set up, for given measurements."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from offload.costs.encodings import EncodingPolicy, parse_allowed
from offload.costs.link import Link
from offload.planning.problem import Constraints, Objective, Power
from offload.scheduling.timeline import Lane, Span, Timeline
from offload_runtimes.deploy import trial
from offload_runtimes.deploy.scheme_bundles import SchemeBundle
from offload_runtimes.deploy.trial import SchemeResult, TrialInputs, choose
from offload_runtimes.measure.target_machine import MeasuredInference

from tests.toolkit.bundle.several import swept

LOSSLESS = EncodingPolicy()


def result(
    label: str,
    median_s: float,
    *,
    device_s: float = 0.0,
    period_s: float | None = None,
    encoding: str = "raw",
    difference: float = 0.0,
) -> SchemeResult:
    """A scheme that was measured."""
    return SchemeResult(
        label=label,
        scheme="cloud",
        predicted_s=None,
        latencies_s=(median_s, median_s, median_s),
        period_s=period_s,
        difference=difference,
        same_answers=None,
        inputs=1,
        is_lossless=not encoding.startswith("jpeg"),
        upload_bytes=0,
        cut=("x",),
        encodings=(encoding,),
        device_layers=0,
        memory_bytes=None,
        predicted=None,
        measured=Timeline((Span(Lane.DEVICE, "", 0.0, device_s),)),
    )


def chosen(
    results: list[SchemeResult],
    constraints: Constraints = Constraints(),  # noqa: B008  frozen
    policy: EncodingPolicy = LOSSLESS,
) -> str:
    """The label of the chosen scheme."""
    return results[choose(results, constraints, policy)[0]].label


@pytest.mark.parametrize(
    ("split_s", "label"), [(0.098, "LO"), (0.096, "split"), (0.2, "LO")], ids=["tie", "win", "lose"]
)
def test_the_simplest_of_the_nearly_fastest(split_s: float, label: str) -> None:
    assert chosen([result("LO", 0.1), result("split", split_s)]) == label


def test_less_energy_may_take_longer() -> None:
    results = [result("LO", 0.1, device_s=0.1), result("CO", 0.12, device_s=0.0)]
    assert chosen(results) == "LO"
    least_energy = Constraints(Objective.ENERGY, power=Power(1.0, 5.0, 0.5))
    assert chosen(results, least_energy) == "CO"


def test_more_throughput_may_take_longer() -> None:
    results = [result("LO", 0.1, period_s=0.1), result("split", 0.15, period_s=0.05)]
    assert chosen(results) == "LO"
    assert chosen(results, Constraints(Objective.THROUGHPUT)) == "split"


def test_the_deadline_holds_for_what_was_measured() -> None:
    results = [
        result("LO", 0.3, period_s=0.1),
        result("CO", 0.1, period_s=0.2),
    ]
    assert chosen(results, Constraints(Objective.THROUGHPUT)) == "LO"
    assert chosen(results, Constraints(Objective.THROUGHPUT, deadline_s=0.2)) == "CO"
    number, remark = choose(results, Constraints(deadline_s=0.05), LOSSLESS)
    assert results[number].label == "CO"
    assert remark == "No scheme keeps the deadline of 50.0 ms on these machines."


@pytest.mark.parametrize(
    ("encodings", "tolerance", "label"),
    [("lossless", None, "LO"), ("jpeg", 0.01, "LO"), ("fp16", 0.1, "LO"), ("jpeg", 0.1, "jpeg")],
)
def test_jpeg_only_where_it_is_allowed_and_close(
    encodings: str, tolerance: float | None, label: str
) -> None:
    results = [result("LO", 0.1), result("jpeg", 0.02, encoding="jpeg", difference=0.05)]
    policy = EncodingPolicy(parse_allowed(encodings), tolerance)
    assert chosen(results, policy=policy) == label


class Device:
    """A machine on which a scheme always takes the same time."""

    def __init__(self, latencies_s: dict[str, float]) -> None:
        self.latencies_s = latencies_s
        self.runs: dict[str, int] = dict.fromkeys(latencies_s, 0)

    def store(self, values: object) -> object:
        return values

    def close(self) -> None: ...

    def session(self, label: str) -> object:
        def time(*_: object) -> MeasuredInference:
            is_first = not self.runs[label]
            self.runs[label] += 1
            return MeasuredInference(self.latencies_s[label], 0.0, not is_first, Timeline(()), 0)

        return SimpleNamespace(time=time)


@pytest.mark.parametrize(("repeats", "budget_s", "kept", "made"), [(8, 60, 8, 9), (8, 0, 5, 5)])
def test_the_first_of_more_than_five_runs_warms_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repeats: int,
    budget_s: float,
    kept: int,
    made: int,
) -> None:
    bundle = swept(tmp_path)
    schemes = [SchemeBundle(name, bundle, n) for n, name in enumerate(("LO", "split", "CO"))]
    device = Device({"LO": 1.0, "split": 0.1, "CO": 0.29})
    sessions = {label: device.session(label) for label in device.latencies_s}
    monkeypatch.setattr(trial, "_open", lambda *_: sessions)
    pair: Any = SimpleNamespace(device=device, server=device)
    inputs = TrialInputs([{"x": 0}] * 3, [{"y": 0}] * 3)
    results = trial.run_in_turns(
        pair, schemes, Link(1e6, 1e6), inputs, repeats=repeats, budget_s=budget_s
    )
    assert [len(each.latencies_s) for each in results] == [kept] * 3
    assert set(device.runs.values()) == {made}
    assert [(each.same_answers, each.inputs) for each in results] == [(2, 3)] * 3
