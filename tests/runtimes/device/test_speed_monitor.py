"""The factors of both sides and the wait at the server, from what a session measures."""

from dataclasses import replace
from pathlib import Path

import pytest
from offload.bundle.bundle import Bundle
from offload.planning.plan import Plan, Speeds
from offload_runtimes.device.speed_monitor import FORGET_DEVICE_S, SpeedMonitor
from offload_runtimes.protocol.offload_pb2 import Span

from tests.runtimes import bundles
from tests.toolkit.bundle.several import swept

LOCAL, SPLIT, CLOUD = range(3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return swept(tmp_path_factory.mktemp("speeds"))


def predicted_s(plan: Plan) -> float:
    """Of the only segment on the device."""
    return plan.forecast.work.total_compute_s


def served(start_s: float, end_s: float, arrived_s: float) -> list[Span]:
    return [
        Span(kind=Span.ARRIVAL, name="x", end_s=arrived_s),
        Span(kind=Span.COMPUTE, name="server-0", start_s=start_s, end_s=end_s),
    ]


def test_the_device_is_slower(bundle: Bundle) -> None:
    monitor = SpeedMonitor(bundle.plans)
    for number in range(10):
        monitor.computed(LOCAL, "device-0", 3 * predicted_s(bundle.plans[LOCAL]), number / 10)
    assert monitor.speeds(1.0).device == pytest.approx(3.0)
    assert monitor.speeds(1.0).server == 1.0


def test_one_slow_run_is_no_slow_device(bundle: Bundle) -> None:
    monitor, usual_s = SpeedMonitor(bundle.plans), predicted_s(bundle.plans[LOCAL])
    for number in range(10):
        monitor.computed(LOCAL, "device-0", (9 if number == 9 else 1) * usual_s, number / 10)
    assert monitor.speeds(1.0).device == pytest.approx(1.0)


def test_recent_runs_count_more(bundle: Bundle) -> None:
    monitor, usual_s = SpeedMonitor(bundle.plans), predicted_s(bundle.plans[LOCAL])
    for number in range(40):
        monitor.computed(LOCAL, "device-0", usual_s, number / 10)
    for number in range(40, 40 + 13):
        monitor.computed(LOCAL, "device-0", 3 * usual_s, number / 10)
    assert monitor.speeds(5.3).device == pytest.approx(3.0), "after 1.3 s of 10 runs a second"


def test_without_measurements_the_speed_is_as_planned(bundle: Bundle) -> None:
    monitor = SpeedMonitor(bundle.plans)
    assert monitor.speeds(0.0) == Speeds()
    monitor.computed(LOCAL, "device-0", 3 * predicted_s(bundle.plans[LOCAL]), 0.0)
    assert monitor.speeds(FORGET_DEVICE_S - 1).device == pytest.approx(3.0)
    assert monitor.speeds(FORGET_DEVICE_S + 1) == Speeds()


def test_the_server_is_slower_and_others_use_it(bundle: Bundle) -> None:
    monitor = SpeedMonitor(bundle.plans)
    usual_s = bundle.plans[CLOUD].forecast.work.server_s
    monitor.served(CLOUD, served(10.5, 10.5 + 2 * usual_s, arrived_s=10.0), 0.0)
    speeds = monitor.speeds(0.0)
    assert speeds.server == pytest.approx(2.0)
    assert speeds.server_wait_s == pytest.approx(0.5, rel=0.01)


def test_a_wait_for_the_sessions_own_frame_does_not_count(bundle: Bundle) -> None:
    monitor = SpeedMonitor(bundle.plans)
    monitor.served(CLOUD, served(0.1, 1.0, arrived_s=0.1), 0.0)
    monitor.served(CLOUD, served(1.0, 2.0, arrived_s=0.2), 0.0)
    assert monitor.speeds(0.0).server_wait_s == 0.0


def test_the_server_is_never_faster_than_planned(bundle: Bundle) -> None:
    """The prediction also holds the decoding of tensors."""
    monitor = SpeedMonitor(bundle.plans)
    usual_s = bundle.plans[CLOUD].forecast.work.server_s
    monitor.served(CLOUD, served(1.0, 1.0 + usual_s / 2, arrived_s=1.0), 0.0)
    assert monitor.speeds(0.0).server == 1.0


def test_short_segments_show_nothing(bundle: Bundle) -> None:
    work = replace(bundle.plans[LOCAL].forecast.work)
    jobs = tuple(replace(job, compute_s=1e-5) for job in work.jobs)
    forecast = replace(bundle.plans[LOCAL].forecast, work=replace(work, jobs=jobs))
    monitor = SpeedMonitor([replace(bundle.plans[LOCAL], forecast=forecast)])
    monitor.computed(0, "device-0", 1.0, 0.0)
    assert monitor.speeds(0.0) == Speeds()
    assert monitor.device_segments() == []


def test_the_shortest_segment_measures_an_idle_device(bundle: Bundle) -> None:
    plans = bundle.plans
    assert SpeedMonitor(plans).device_segments() == [(SPLIT, "device-0"), (LOCAL, "device-0")]


def test_a_plan_without_a_forecast(tmp_path: Path) -> None:
    monitor = SpeedMonitor(bundles.branches(tmp_path / "b").bundle.plans)
    monitor.computed(0, "device-0", 1.0, 0.0)
    monitor.served(0, served(1.0, 2.0, arrived_s=1.0), 0.0)
    assert monitor.speeds(0.0) == Speeds()
