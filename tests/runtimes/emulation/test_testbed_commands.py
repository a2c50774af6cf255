"""The commands of a testbed, and which testbeds are leftovers, without running anything."""

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offload.costs.link import PRESETS, Link
from offload.errors import InputError
from offload.planning.plan import Side
from offload_runtimes.emulation import host
from offload_runtimes.emulation import testbed as bed
from offload_runtimes.emulation.host import find_cpu_controller
from offload_runtimes.emulation.testbed import (
    down_commands,
    shape_commands,
    testbeds_of,
    up_commands,
)

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)


@given(NAMES)
def test_both_ends_share_a_link_of_the_test_network(name: str) -> None:
    ends = [ipaddress.IPv4Interface(f"{bed.Testbed(name).address(side)}/30") for side in Side]
    assert ends[0].network == ends[1].network
    assert ends[0].network.subnet_of(ipaddress.IPv4Network("198.18.0.0/15"))
    assert {end.ip for end in ends} == set(ends[0].network.hosts())


@given(NAMES)
def test_names_of_namespaces_lead_back_to_the_testbed(name: str) -> None:
    spaces = [bed.Testbed(name).namespace(side) for side in Side]
    assert testbeds_of([*spaces, "other", "offload-x"]) == (bed.Testbed(name),)


def test_the_link_is_shaped_each_way_on_the_sending_side() -> None:
    testbed = bed.Testbed("lab")
    up, down = shape_commands(testbed, Link(5e6, 20e6))
    assert up[2] == testbed.namespace(Side.DEVICE)
    assert "5000000bit" in up
    assert down[2] == testbed.namespace(Side.SERVER)
    assert "20000000bit" in down
    assert all("tbf" in command and "3kb" in command for command in (up, down))


def test_a_delay_is_put_behind_the_rate() -> None:
    commands = shape_commands(bed.Testbed("lab"), Link(5e6, 5e6, 0.01, 0.02))
    delays = [command for command in commands if "netem" in command]
    assert [command[command.index("delay") + 1] for command in delays] == ["10000us", "20000us"]
    assert commands.index(delays[0]) > 0


def test_everything_made_is_removed_and_nothing_else() -> None:
    testbed = bed.Testbed("run-12-345")
    made = [c[3] for c in up_commands(testbed, PRESETS["wifi"]) if c[:3] == ("ip", "netns", "add")]
    removed = [command[3] for command in down_commands(testbed, [*made, "lan"])]
    assert sorted(removed) == sorted(made)
    assert down_commands(testbed, made[:1]) == (("ip", "netns", "del", made[0]),)


def test_only_testbeds_of_processes_that_are_gone_are_left_over() -> None:
    running, restarted, gone = (bed.Testbed(f"run-{pid}-7") for pid in (1, 2, 3))
    started = {1: 7, 2: 8}
    testbeds = (running, restarted, gone, bed.Testbed("lab"))
    assert [t for t in testbeds if t.is_leftover(started.get)] == [restarted, gone]


def test_quotas_are_found_in_version_1_and_2() -> None:
    old = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n"
    new = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
    first = find_cpu_controller(new + old, lambda _: "")
    assert first is not None
    assert first.version == 1
    assert dict(first.quota("g", 5)) == {
        Path("/sys/fs/cgroup/cpu,cpuacct/g/cpu.cfs_period_us"): "5000",
        Path("/sys/fs/cgroup/cpu,cpuacct/g/cpu.cfs_quota_us"): "1000",
    }
    second = find_cpu_controller(new, lambda path: "cpu io" if path.name.endswith("ers") else "")
    assert second is not None
    assert second.quota("g", 20) == ((Path("/sys/fs/cgroup/g/cpu.max"), "1000 20000"),)
    assert find_cpu_controller(new, lambda _: "memory io") is None
    assert find_cpu_controller("proc /proc proc rw 0 0", lambda _: "") is None


@given(st.floats(1, 1000))
def test_a_quota_is_the_fraction_asked_for(slowdown: float) -> None:
    found = find_cpu_controller("cgroup2 /c cgroup2 rw 0 0", lambda _: "cpu")
    assert found is not None
    ((_, content),) = found.quota("g", slowdown)
    quota_us, period_us = map(int, content.split())
    assert quota_us >= 999
    assert period_us / quota_us == pytest.approx(slowdown, rel=2e-3)


def test_a_quota_below_the_kernels_smallest_is_refused() -> None:
    found = find_cpu_controller("cgroup2 /c cgroup2 rw 0 0", lambda _: "cpu")
    assert found is not None
    with pytest.raises(InputError, match="pacing"):
        found.quota("g", 2000)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Error: Specified qdisc kind is unknown.", "no tbf queue"),
        ("RTNETLINK answers: Operation not permitted", "does not permit"),
        ("", "it printed no error"),
    ],
)
def test_what_the_kernel_refuses_is_said_in_a_sentence(
    said: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "tc"
    fake.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match=expected):
        host.run(shape_commands(bed.Testbed("lab"), PRESETS["wifi"])[0])


def test_without_root_or_tools_the_obstacle_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    assert "root" in str(host.obstacle())
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "iproute2" in str(host.obstacle())
    with (
        pytest.raises(InputError, match="iproute2"),
        bed.open_testbed(PRESETS["wifi"]),
    ):
        pytest.fail("must not be reached")


@pytest.mark.parametrize("name", ["", "a b", "run-1-2", "-x", "x" * 41, "../x"])
def test_names_that_would_confuse_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="testbed name"):
        bed.named(name)
