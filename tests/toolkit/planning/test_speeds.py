"""A forecast at other speeds than planned."""

import pytest
from offload.costs.link import Link
from offload.planning.plan import Forecast, Speeds
from offload.scheduling.instance import Instance, Job, ServerJob

LINK = Link(8e6, 8e6)
JOBS = (Job("a", 0.1), Job("b", 0.2, 0.05))
SPLIT = Forecast(Instance(JOBS, server_s=0.03, download_s=0.01), (None, 50_000), (10_000,))
LOCAL = Forecast(Instance((Job("a", 0.5),)), (None,), ())


def test_as_planned() -> None:
    assert SPLIT.latency_s(LINK) == pytest.approx(0.1 + 0.2 + 0.05 + 0.03 + 0.01)
    assert SPLIT.latency_s(LINK, Speeds()) == SPLIT.latency_s(LINK)


def test_each_side_has_its_factor() -> None:
    slow = Speeds(device=3.0, server=2.0, server_wait_s=0.4)
    assert SPLIT.latency_s(LINK, slow) == pytest.approx(0.9 + 0.05 + 0.06 + 0.4 + 0.01)
    assert SPLIT.use(LINK, slow).seconds == pytest.approx((0.9, 0.05, 0.46, 0.01))


def test_a_local_plan_does_not_wait_for_the_server() -> None:
    assert LOCAL.latency_s(LINK, Speeds(2.0, 9.0, 9.0)) == pytest.approx(1.0)


def test_several_segments_on_the_server_wait_once() -> None:
    jobs = (ServerJob("s0", 0.1, (0,)), ServerJob("s1", 0.1, (1,), (0,)))
    forecast = Forecast(Instance(JOBS, server_jobs=jobs), (None, 50_000), ())
    assert forecast.use(LINK, Speeds(server_wait_s=1.0)).server_s == pytest.approx(1.2)
    assert forecast.use(LINK, Speeds(server=3.0)).server_s == pytest.approx(0.6)


def test_speeds_in_words() -> None:
    assert Speeds(1.02, 0.99, 1e-5).describe() == "device as planned, server as planned"
    assert Speeds(3.0, 1.0, 0.02).describe() == (
        "device takes 3x as long, server as planned, 20.0 ms wait"
    )
